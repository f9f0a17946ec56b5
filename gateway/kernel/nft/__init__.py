"""Rulesets, the owned table's one writer, raw element messages."""
