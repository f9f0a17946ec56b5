"""DNS server ``https``: DNS over HTTPS (RFC 8484) by HTTP/2, or by HTTP/1.1 where the server has no other."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Literal

from msgspec import field

from gateway.config.fields import as_list
from gateway.config.shared import DialerOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.dns.http import H1Line, H2Line, Request
from gateway.dns.pool import Line, Pool
from gateway.tls.options import OutboundTLSOptions
from gateway.transport.dial import Dialer
from gateway.transport.remote import client, secure

DEFAULT = "/dns-query"
PATH = re.compile(r"/[!$-;=?-Z_a-z~]*")
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
OURS = {"connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
"""Fields of the connection, which HTTP/2 forbids, and the length of what is sent (RFC 9113 section 8.2.2)."""


class Options(DialerOptions, kw_only=True):
    """``tls`` counts whatever its ``enabled`` says. ``method``: "" is POST."""

    server: str
    server_port: int = 443
    path: str = ""
    method: Literal["", "GET", "POST"] = ""
    headers: dict[str, str | list[str]] = field(default_factory=dict)
    tls: OutboundTLSOptions = field(default_factory=OutboundTLSOptions)

    def __post_init__(self) -> None:
        for name, value in self.fields:
            if not NAME.fullmatch(name) or name in OURS:
                raise ValueError(f'headers: "{name}" cannot be set here')
            if not value.isascii() or any(char < " " or char == "\x7f" for char in value):
                raise ValueError(f"headers: the value of {name} has other characters than printable ASCII")
        if self.path and not PATH.fullmatch(self.path):
            raise ValueError('path begins with "/" and has only what may stand in a URL; write others as %XX')
        _ = self.request  # raises for a host that is no name

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Of ``headers``, names in lower case."""
        return [(name.lower(), value) for name, values in self.headers.items() for value in as_list(values)]

    @property
    def request(self) -> Request:
        """The host is that of ``headers``, else the name in TLS, else the server."""
        host = next((value for name, value in self.fields if name == "host"), "")
        if not host:
            place = Address.of("" if self.tls.disable_sni else self.tls.server_name or self.server, 0).host
            place = place or Address.of(self.server, 0).host
            host = f"[{place}]" if isinstance(place, IPv6Address) else str(place).encode("idna").decode()
        if self.server_port not in (0, 443):
            host = f"{host}:{self.server_port}"
        rest = [(name, value) for name, value in self.fields if name != "host"]
        return Request(host, self.path or DEFAULT, self.method == "GET", rest)


class Server:
    """``exchange`` raises DialError, PeerError or OSError; the caller bounds its time. The constructor raises
    ConfigError for a certificate that cannot be read."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._address = Address.of(options.server, options.server_port or 443)
        self._request = options.request
        self._wiring = wiring
        self._dialer = Dialer(options, wiring)
        self._client = client(options.tls, options.server, wiring.directory, "h2", "http/1.1")
        self._pool = Pool(self._dial)

    async def _dial(self) -> Line:
        stream = await self._dialer.connect(self._address)
        secured, protocol = await secure(self._wiring.edge, stream, self._client)
        kind = H2Line if protocol == "h2" else H1Line
        return kind(secured, self._request, str(self._address))

    async def exchange(self, query: bytes) -> bytes:
        return await self._pool.ask(query)

    async def close(self) -> None:
        self._pool.close()
