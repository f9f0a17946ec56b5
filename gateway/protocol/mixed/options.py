"""JSON object of type ``mixed``; ``tls`` and ``set_system_proxy`` are not built yet."""

from __future__ import annotations

from gateway.config.shared import UserListenOptions


class InboundOptions(UserListenOptions):
    """``users`` count for SOCKS and HTTP alike."""
