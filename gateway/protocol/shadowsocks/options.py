"""JSON objects of type ``shadowsocks``; relay ``destinations``, ``multiplex``, ``managed`` and plugins are not built
yet, nor are stream ciphers."""

from __future__ import annotations

from typing import Literal

from gateway.config.shared import ListenOptions, NetworkList, Options, RemoteOptions
from gateway.protocol.shadowsocks.cipher import METHODS, client_keys, main_key

MethodName = Literal[
    "none",
    "aes-128-gcm",
    "aes-192-gcm",
    "aes-256-gcm",
    "chacha20-ietf-poly1305",
    "xchacha20-ietf-poly1305",
    "2022-blake3-aes-128-gcm",
    "2022-blake3-aes-256-gcm",
    "2022-blake3-chacha20-poly1305",
]


class ShadowsocksUser(Options, kw_only=True):
    name: str = ""
    password: str


class InboundOptions(ListenOptions, kw_only=True):
    """With ``users``, ``password`` is the server's own key in 2022, and is not used by the AEAD methods."""

    method: MethodName
    password: str = ""
    users: list[ShadowsocksUser] = []  # noqa: RUF012 (msgspec copies defaults)
    network: NetworkList = None

    def __post_init__(self) -> None:
        method = METHODS[self.method]
        if self.users and not method.key:
            raise ValueError("users need a method other than none")
        if self.users and method.modern and not method.identities:
            raise ValueError(f"{method.name} has no identity headers: it serves one user, without users")
        for user in self.users:
            main_key(method, user.password)
        if not self.users or method.modern:
            main_key(method, self.password)


class OutboundOptions(RemoteOptions, kw_only=True):
    """``password`` of 2022 methods may be ``server key:user key`` (base64)."""

    method: MethodName
    password: str = ""
    network: NetworkList = None

    def __post_init__(self) -> None:
        client_keys(METHODS[self.method], self.password)
