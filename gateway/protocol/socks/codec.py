"""SOCKS handshakes and UDP headers, both roles, without I/O. Pure.

Input is bounded: nothing a peer can say before it is authenticated is kept beyond 600 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hmac import compare_digest
from ipaddress import IPv4Address
from typing import Literal, NamedTuple

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import AuthError, LocalError, PeerError
from gateway.core.wire import Incomplete, Reader, u16

CONNECT, ASSOCIATE = 1, 3
OK, FAILED, NOT_ALLOWED, NOT_SUPPORTED = 0, 1, 2, 7
NO_AUTH, PASSWORD, NONE_FITS = 0, 2, 0xFF
ANY = Address(IPv4Address(0), 0)
Version = Literal["4", "4a", "5"]

_GRANTED, _REFUSED = 90, 91
_FIELD = 255
_CODES = {
    1: "general failure", 2: "not allowed", 3: "network unreachable", 4: "host unreachable", 5: "connection refused",
    6: "TTL expired", 7: "command not supported", 8: "address type not supported",
}  # fmt: skip


class Request(NamedTuple):
    version: int
    command: int
    destination: Address
    user: str


def verify(users: Mapping[str, str], name: str, password: str) -> bool:
    """Whether the pair is known; takes as long for an unknown name as for a wrong password."""
    known = users.get(name)
    right = compare_digest((known or "").encode(), password.encode())
    return right and known is not None


class _Steps:
    """A handshake as steps, each of which reads all of one message or raises Incomplete."""

    def __init__(self, first: Callable[[Reader], bytes]) -> None:
        self._data = b""
        self._step = first

    @property
    def rest(self) -> bytes:
        """What came after the handshake."""
        return self._data

    def done(self) -> bool:
        raise NotImplementedError

    def receive(self, data: bytes) -> bytes:
        """What to send. Raises PeerError where it is no SOCKS, AuthError."""
        self._data += data
        out = b""
        while not self.done():
            reader = Reader(self._data)
            try:
                out += self._step(reader)
            except Incomplete:
                break
            self._data = self._data[reader.pos :]
        return out


class Server(_Steps):
    """The server's side of one handshake. ``receive`` what came, send what it returns, until ``request`` is set (then
    ``rest`` holds what came after it) or ``failed`` says why not (then close, after sending). ``users`` empty: all may
    enter."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self.request: Request | None = None
        self.failed = ""
        self._users = users
        self._user = ""
        super().__init__(self._version)

    def done(self) -> bool:
        return self.request is not None or bool(self.failed)

    def _version(self, reader: Reader) -> bytes:
        version = reader.u8()
        if version not in (4, 5):
            raise PeerError(f"SOCKS version {version}")
        self._step = self._request4 if version == 4 else self._methods
        return b""

    def _request4(self, reader: Reader) -> bytes:
        command, port, host = reader.u8(), reader.u16(), reader.ipv4()
        user = _until_zero(reader).decode("utf-8", "replace")
        packed = int(host)
        if 0 < packed < 256:
            destination = Address.of(socksaddr.text(_until_zero(reader)), port)
        else:
            destination = Address(host, port)
        if self._users and not verify(self._users, user, ""):
            self.failed = "user is not allowed"
        elif command != CONNECT:
            self.failed = f"command {command}"
        if self.failed:
            return reply(4, NOT_ALLOWED)
        self.request = Request(4, command, destination, user if self._users else "")
        return b""

    def _methods(self, reader: Reader) -> bytes:
        offered = reader.take(reader.u8())
        wanted = PASSWORD if self._users else NO_AUTH
        if wanted not in offered:
            self.failed = "no common authentication method"
            return bytes((5, NONE_FITS))
        self._step = self._password if self._users else self._request5
        return bytes((5, wanted))

    def _password(self, reader: Reader) -> bytes:
        if reader.u8() != 1:
            raise PeerError("version of user and password")
        name = reader.take(reader.u8()).decode("utf-8", "replace")
        password = reader.take(reader.u8()).decode("utf-8", "replace")
        if not verify(self._users, name, password):
            self.failed = "wrong user or password"
            return b"\x01\x01"
        self._user = name
        self._step = self._request5
        return b"\x01\x00"

    def _request5(self, reader: Reader) -> bytes:
        if reader.u8() != 5:
            raise PeerError("version of the request")
        command = reader.u8()
        reader.skip(1)
        destination = _address(reader, command)
        if command not in (CONNECT, ASSOCIATE):
            self.failed = f"command {command}"
            return reply(5, NOT_SUPPORTED)
        self.request = Request(5, command, destination, self._user)
        return b""


def _address(reader: Reader, command: int) -> Address:
    try:
        return socksaddr.read(reader)
    except Incomplete:
        raise
    except PeerError:
        if command == ASSOCIATE:
            # Some clients name no host where they do not know their own address yet; it is a hint only.
            return ANY
        raise


def _until_zero(reader: Reader) -> bytes:
    view = bytes(reader.data[reader.pos : reader.pos + _FIELD + 1])
    end = view.find(0)
    if end < 0:
        if len(view) > _FIELD:
            raise PeerError("text field over 255 bytes")
        raise Incomplete("text without its end")
    reader.skip(end + 1)
    return view[:end]


def reply(version: int, code: int, bound: Address = ANY) -> bytes:
    """The server's answer to a request; ``code`` as RFC 1928 numbers them."""
    if version == 4:
        host = bound.host if isinstance(bound.host, IPv4Address) else IPv4Address(0)
        return bytes((0, _GRANTED if code == OK else _REFUSED)) + u16(bound.port) + host.packed
    return bytes((5, code, 0)) + socksaddr.write(bound)


class Client(_Steps):
    """The client's side. Send ``hello()``, then ``receive`` what comes and send what it returns, until ``bound`` is
    set; ``rest`` holds what came after. Raises AuthError, PeerError."""

    def __init__(
        self, version: Version, destination: Address, command: int = CONNECT, username: str = "", password: str = ""
    ) -> None:
        if max(len(username.encode()), len(password.encode())) > _FIELD:
            raise LocalError("user name or password over 255 bytes")
        self.bound: Address | None = None
        self._version = version
        self._destination = destination
        self._command = command
        self._username = username
        self._password = password
        super().__init__(self._answer4 if version != "5" else self._method)

    def done(self) -> bool:
        return self.bound is not None

    def hello(self) -> bytes:
        if self._version == "5":
            return b"\x05\x02\x00\x02" if self._username else b"\x05\x01\x00"
        return self._request4()

    def _request4(self) -> bytes:
        host, port = self._destination
        user = self._username.encode()
        if b"\0" in user:
            raise LocalError("user name has a zero byte")
        head = bytes((4, self._command)) + u16(port)
        if isinstance(host, IPv4Address):
            return head + host.packed + user + b"\0"
        if self._version == "4":
            raise LocalError("SOCKS 4 carries IPv4 addresses only")
        name = str(host).encode()
        if len(name) > _FIELD or b"\0" in name:
            raise LocalError("host name does not fit")
        return head + b"\0\0\0\x01" + user + b"\0" + name + b"\0"

    def _answer4(self, reader: Reader) -> bytes:
        reader.skip(1)
        code, port, host = reader.u8(), reader.u16(), reader.ipv4()
        if code != _GRANTED:
            raise PeerError(f"server refused: code {code}")
        self.bound = Address(host, port)
        return b""

    def _method(self, reader: Reader) -> bytes:
        if reader.u8() != 5:
            raise PeerError("server does not speak SOCKS 5")
        method = reader.u8()
        if method == NO_AUTH:
            return self._request5()
        if method != PASSWORD or not self._username:
            raise AuthError("server wants another authentication")
        user, password = self._username.encode(), self._password.encode()
        self._step = self._status
        return bytes((1, len(user))) + user + bytes((len(password),)) + password

    def _status(self, reader: Reader) -> bytes:
        reader.skip(1)
        if reader.u8():
            raise AuthError("server refused user or password")
        return self._request5()

    def _request5(self) -> bytes:
        self._step = self._answer5
        return bytes((5, self._command, 0)) + socksaddr.write(self._destination)

    def _answer5(self, reader: Reader) -> bytes:
        if reader.u8() != 5:
            raise PeerError("version of the answer")
        code = reader.u8()
        if code:
            raise PeerError(f"server refused: {_CODES.get(code, f'code {code}')}")
        reader.skip(1)
        self.bound = socksaddr.read(reader)
        return b""


def wrap(address: Address) -> bytes:
    """The header of one datagram."""
    return b"\0\0\0" + socksaddr.write(address)


def unwrap(data: bytes | bytearray | memoryview) -> tuple[Address, memoryview]:
    """Address and payload of one datagram. Raises PeerError, also for a fragment."""
    reader = Reader(data)
    reader.skip(2)
    if reader.u8():
        raise PeerError("fragmented datagram")
    address = socksaddr.read(reader)
    return address, reader.data[reader.pos :]
