"""JSON object of type ``block``."""

from __future__ import annotations

from gateway.config.shared import Options


class OutboundOptions(Options):
    """It has no fields."""
