"""JSON object of type ``mixed``; ``tls`` and ``set_system_proxy`` are not built yet."""

from __future__ import annotations

from gateway.config.shared import ListenOptions, User


class InboundOptions(ListenOptions):
    """``users`` count for SOCKS and HTTP alike; empty: everybody may enter."""

    users: list[User] = []  # noqa: RUF012 (msgspec copies defaults)
