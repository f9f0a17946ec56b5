"""JSON objects of type ``socks``."""

from __future__ import annotations

from typing import Literal

from gateway.config.shared import ListenOptions, NetworkList, RemoteOptions, User


class InboundOptions(ListenOptions):
    """``users`` empty: everybody may enter."""

    users: list[User] = []  # noqa: RUF012 (msgspec copies defaults)


class OutboundOptions(RemoteOptions, kw_only=True):
    version: Literal["", "4", "4a", "5"] = ""
    """"" is "5"."""
    username: str = ""
    password: str = ""
    network: NetworkList = None

    def __post_init__(self) -> None:
        if max(len(self.username.encode()), len(self.password.encode())) > 255:
            raise ValueError("username and password have at most 255 bytes each (RFC 1929)")
