"""Desired kernel state: frozen plans in, nft / netlink / BPF / socket calls out."""
