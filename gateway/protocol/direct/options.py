"""JSON objects of type ``direct``."""

from __future__ import annotations

from gateway.config.shared import DialerOptions, ListenOptions, NetworkList


class InboundOptions(ListenOptions):
    """Where flows go: ``override_address`` (else the address they came to) and ``override_port`` (else the port)."""

    network: NetworkList = None
    override_address: str = ""
    override_port: int = 0


class OutboundOptions(DialerOptions):
    """``override_address`` and ``override_port`` replace the destination (deprecated: use the route options)."""

    override_address: str = ""
    override_port: int = 0
