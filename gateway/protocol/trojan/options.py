"""JSON objects of type ``trojan``; ``multiplex`` and ``transport`` are not built yet."""

from __future__ import annotations

from gateway.config.shared import NetworkList
from gateway.tls.options import TLSRemoteOptions


class OutboundOptions(TLSRemoteOptions, kw_only=True):
    """Without ``tls`` everything can be read on the way, the password's hash too."""

    password: str = ""
    network: NetworkList = None
