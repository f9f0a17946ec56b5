"""JSON objects of type ``socks``."""

from __future__ import annotations

from typing import Literal

from gateway.config.shared import NetworkList, RemoteOptions, UserListenOptions


class InboundOptions(UserListenOptions):
    """Nothing of its own."""


class OutboundOptions(RemoteOptions, kw_only=True):
    version: Literal["", "4", "4a", "5"] = ""
    """"" is "5"."""
    username: str = ""
    password: str = ""
    network: NetworkList = None

    def __post_init__(self) -> None:
        if max(len(self.username.encode()), len(self.password.encode())) > 255:
            raise ValueError("username and password have at most 255 bytes each (RFC 1929)")
