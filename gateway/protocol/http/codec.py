"""HTTP proxy requests and answers, both roles, without I/O; h11 does the parsing. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from hmac import compare_digest
from ipaddress import IPv6Address
from urllib.parse import urlsplit

import h11

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import AuthError, PeerError

LONGEST = 65536
"""Most bytes of a request line and header."""

_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"upgrade",
}  # fmt: skip


def parse_authority(text: str, port: int = 0) -> Address:
    """``host:port``, ``[v6]:port`` or, with a default ``port``, a host alone. Raises PeerError."""
    try:
        split = urlsplit("//" + text)
        host, found = split.hostname, split.port
    except ValueError:
        raise PeerError("target is no host and port") from None
    if not host or split.path or split.query or split.fragment:
        raise PeerError("target is no host and port")
    if not (found or port):
        raise PeerError("target has no port")
    return Address.of(socksaddr.text(host.encode()), found or port)


def authority(address: Address) -> str:
    """``host:port`` as it stands in a CONNECT line."""
    return str(address)


def target(request: h11.Request) -> tuple[Address, bytes]:
    """Where a plain proxy request goes, and its origin-form target. Raises PeerError."""
    text = request.target.decode("ascii", "replace")
    scheme, mark, rest = text.partition("://")
    if not mark or scheme.lower() != "http":
        raise PeerError("target is not an http URL")
    end = min((at for at in (rest.find(char) for char in "/?#") if at >= 0), default=len(rest))
    path = rest[end:].partition("#")[0]
    address = parse_authority(rest[:end].rpartition("@")[2], 80)
    return address, (path if path.startswith("/") else "/" + path).encode()


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """``headers`` without the hop-by-hop ones, among them those that Connection names. The body's framing stays: h11
    frames it anew from it."""
    found = list(headers)
    named = {
        token.strip().lower()
        for name, value in found
        if name.lower() in (b"connection", b"proxy-connection")
        for token in value.split(b",")
    }
    drop = _HOP | (named - {b"transfer-encoding", b"content-length", b"host"})
    return [(name, value) for name, value in found if name.lower() not in drop]


def authenticate(headers: Iterable[tuple[bytes, bytes]], users: Mapping[str, str]) -> str | None:
    """The user that Proxy-Authorization (Basic) proves, "" where ``users`` is empty, None where it proves nobody."""
    if not users:
        return ""
    for name, value in headers:
        if name.lower() != b"proxy-authorization":
            continue
        scheme, _, text = value.partition(b" ")
        if scheme.lower() != b"basic":
            continue
        try:
            user, _, password = base64.b64decode(text.strip(), validate=True).decode("utf-8", "replace").partition(":")
        except (binascii.Error, ValueError):
            return None
        known = users.get(user)
        right = compare_digest((known or "").encode(), password.encode())
        return user if right and known is not None else None
    return None


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def refusal(status: int, reason: str, extra: str = "") -> bytes:
    """A whole answer that ends the connection."""
    return f"HTTP/1.1 {status} {reason}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()


UNAUTHORISED = refusal(
    407, "Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="proxy", charset="UTF-8"\r\n'
)
BAD_REQUEST = refusal(400, "Bad Request")
BAD_GATEWAY = refusal(502, "Bad Gateway")


class Connect:
    """The client's side of one CONNECT: send ``hello()``, ``receive`` until it returns True; ``rest`` holds what came
    after the answer's header. Raises PeerError, AuthError."""

    def __init__(
        self,
        destination: Address,
        username: str = "",
        password: str = "",
        headers: Mapping[str, Sequence[str]] | None = None,
        path: str = "",
    ) -> None:
        self.rest = b""
        self._data = b""
        self._destination = destination
        self._fields: list[tuple[str, str]] = []
        self._path = path
        host = ""
        for name, values in (headers or {}).items():
            if name.lower() == "host":
                host = values[0] if values else ""
            else:
                self._fields += [(name, value) for value in values]
        self._fields.insert(0, ("Host", host or authority(destination)))
        if username:
            self._fields.append(("Proxy-Authorization", basic(username, password)))

    def hello(self) -> bytes:
        lines = [f"CONNECT {self._path or authority(self._destination)} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def receive(self, data: bytes) -> bool:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            if len(self._data) > LONGEST:
                raise PeerError("header of the answer is too long")
            return False
        parts = self._data.partition(b"\r\n")[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise PeerError("not an HTTP answer")
        status = int(parts[1])
        if status == 407:
            raise AuthError("proxy refused user or password")
        if not 200 <= status < 300:
            raise PeerError(f"proxy refused: status {status}")
        self.rest = self._data[end + 4 :]
        return True


def bracket(address: Address) -> bytes:
    """The Host field of a plain request to ``address``."""
    host = f"[{address.host}]" if isinstance(address.host, IPv6Address) else str(address.host)
    return (host if address.port == 80 else f"{host}:{address.port}").encode()
