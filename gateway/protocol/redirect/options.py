"""JSON object of type ``redirect``."""

from __future__ import annotations

from gateway.config.shared import ListenOptions


class InboundOptions(ListenOptions):
    """TCP alone: a redirected datagram has lost its destination."""
