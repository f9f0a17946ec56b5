"""JSON objects of type ``vless``; ``multiplex``, ``transport`` and the flow ``xtls-rprx-vision`` are not built yet."""

from __future__ import annotations

from typing import Literal

from gateway.config import anchor
from gateway.config.shared import NetworkList
from gateway.tls.options import TLSRemoteOptions


class OutboundOptions(TLSRemoteOptions, kw_only=True):
    """``uuid`` may be any text: what is no UUID becomes one by its hash. ``packet_encoding`` absent means ``xudp``, and
    "" the plain form, which has a connection for each peer."""

    uuid: str
    flow: str = ""
    network: NetworkList = None
    packet_encoding: Literal["", "packetaddr", "xudp"] | None = None

    def __post_init__(self) -> None:
        if self.flow == "xtls-rprx-vision":
            raise ValueError(f'flow "{self.flow}" exists in sing-box {anchor.VERSION} but is not built yet; remove it')
        if self.flow:
            raise ValueError(f'unknown flow "{self.flow}"; remove it')
