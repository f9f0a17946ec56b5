"""``http://`` and ``https://`` URLs of the configuration (RFC 3986, RFC 9110 section 4.2). Pure."""

from __future__ import annotations

import base64
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

PORTS = {"http": 80, "https": 443}
LONGEST = 8192
_SAFE = "/%:=&?~+!$,;'@()*[]"


class URL(NamedTuple):
    """``host`` in lower case, an address without brackets; ``target`` is path and query as a request has them, ASCII;
    ``credentials`` is the value of an Authorization header, "" for none: not to be shown."""

    scheme: str
    host: str
    port: int
    target: str
    credentials: str = ""

    @classmethod
    def parse(cls, text: str) -> URL:
        """Raises ValueError with what to write instead."""
        try:
            parts = urlsplit(text)
            port = parts.port
            host = (parts.hostname or "").encode("ascii" if (parts.hostname or "").isascii() else "idna").decode()
        except ValueError:  # UnicodeError is one
            raise ValueError(f'"{text}" is not a URL') from None
        if parts.scheme not in PORTS or not host or len(text) > LONGEST or set(host) & set(" \t\r\n/"):
            raise ValueError(f'"{text}" is not a URL; write for example "https://example.com/list.srs"')
        target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
        credentials = ""
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target, credentials)

    def join(self, location: str) -> URL:
        """Where ``location``, of an answer from here, leads; credentials go along within the same host alone. Raises
        ValueError."""
        found = URL.parse(urljoin(str(self), location))
        same = (found.scheme, found.host, found.port) == (self.scheme, self.host, self.port)
        return found._replace(credentials=self.credentials) if same and not found.credentials else found

    @property
    def authority(self) -> str:
        """Value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        """Without credentials."""
        return f"{self.scheme}://{self.authority}{self.target}"
