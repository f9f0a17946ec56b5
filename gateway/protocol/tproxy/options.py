"""JSON object of type ``tproxy``."""

from __future__ import annotations

from gateway.config.shared import ListenOptions, NetworkList


class InboundOptions(ListenOptions):
    network: NetworkList = None
