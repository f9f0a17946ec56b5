"""JSON objects of type ``http``; ``tls`` of inbounds and ``set_system_proxy`` are not built yet."""

from __future__ import annotations

from gateway.config.shared import UserListenOptions
from gateway.tls.options import TLSRemoteOptions


class InboundOptions(UserListenOptions):
    """Nothing of its own."""


class OutboundOptions(TLSRemoteOptions, kw_only=True):
    """``headers`` are added to the CONNECT request; ``path`` stands in its request line instead of the target."""

    username: str = ""
    password: str = ""
    path: str = ""
    headers: dict[str, str | list[str]] = {}  # noqa: RUF012 (msgspec copies defaults)

    def __post_init__(self) -> None:
        fields = {name: [value] if isinstance(value, str) else value for name, value in self.headers.items()}
        for text in (self.path, *fields, *(value for values in fields.values() for value in values)):
            if any(char < " " or char == "\x7f" for char in text):
                raise ValueError("path and headers have no control characters")
        if " " in self.path:
            raise ValueError("path has no blanks")
