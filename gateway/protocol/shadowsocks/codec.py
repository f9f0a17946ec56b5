"""Shadowsocks over TCP, both roles, as stream layers without I/O.

What follows a request's head is ``chunk``'s. Clocks and randomness are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import NamedTuple

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import AuthError, LocalError, PeerError
from gateway.core.stream import Buffer
from gateway.core.wire import Incomplete, Reader, u16, u64
from gateway.protocol.shadowsocks.chunk import LENGTH, Opener, Sealer
from gateway.protocol.shadowsocks.cipher import (
    TAG,
    Method,
    ecb_decryptor,
    ecb_encryptor,
    identity,
    identity_key,
)  # fmt: skip
from gateway.protocol.shadowsocks.replay import SaltFilter

Random = Callable[[int], bytes]
Clock = Callable[[], float]

REQUEST, RESPONSE = 0, 1
SKEW = 30
"""Seconds that the clocks of both ends may differ (SIP022)."""
PADDING = 900
"""Most padding bytes of a 2022 request."""
_FIXED = 1 + 8 + 2


class Request(NamedTuple):
    """What a client asked for."""

    destination: Address
    user: str


class User(NamedTuple):
    name: str
    key: bytes


class Client:
    """A client's layer. ``hello()`` is sent first; then ``encode`` and ``decode``."""

    ended = False

    def __init__(
        self, method: Method, keys: Sequence[bytes], destination: Address, random: Random, clock: Clock
    ) -> None:
        self._method = method
        self._keys = tuple(keys)
        self._destination = destination
        self._random = random
        self._clock = clock
        self._salt = b""
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._head = bytearray()
        self._first = -1

    def hello(self) -> bytes:
        """The request: sent once, before any payload."""
        method = self._method
        address = socksaddr.write(self._destination)
        self._salt = salt = self._random(method.key)
        self._sealer = sealer = Sealer(method, method.subkey(self._keys[-1], salt))
        if not method.modern:
            return salt + bytes(sealer.seal(address))
        padding = 1 + int.from_bytes(self._random(2), "big") % PADDING
        variable = address + u16(padding) + self._random(padding)
        fixed = bytes((REQUEST,)) + u64(int(self._clock())) + u16(len(variable))
        headers = b"".join(
            ecb_encryptor(identity_key(key, salt)).update(identity(self._keys[index + 1]))
            for index, key in enumerate(self._keys[:-1])
        )
        return salt + headers + sealer.one(fixed) + sealer.one(variable)

    def encode(self, data: Buffer) -> Buffer:
        if self._sealer is None:
            raise LocalError("payload before the request")
        return self._sealer.seal(data)

    def encode_eof(self) -> Buffer:
        return b""

    def decode(self, data: Buffer) -> Buffer:
        if self._opener is not None and self._first < 0:
            return self._opener.feed(data)
        self._head += data
        return self._open()

    def _open(self) -> bytes:
        method, head = self._method, self._head
        if self._opener is None:
            fixed = _FIXED + method.key + TAG if method.modern else 0
            if len(head) < method.key + fixed:
                return b""
            salt = bytes(head[: method.key])
            opener = Opener(method, method.subkey(self._keys[-1], salt))
            if method.modern:
                self._first = self._response(opener.one(head[method.key : method.key + fixed]))
            del head[: method.key + fixed]
            self._opener = opener
        out = b""
        if self._first >= 0:
            size = self._first + TAG
            if len(head) < size:
                return b""
            out = self._opener.one(head[:size])
            del head[:size]
            self._first = -1
        rest, self._head = self._head, bytearray()
        return out + bytes(self._opener.feed(rest))

    def _response(self, fixed: bytes) -> int:
        reader = Reader(fixed)
        if reader.u8() != RESPONSE:
            raise PeerError("not a response")
        check_time(reader.u64(), self._clock())
        if not compare_digest(reader.take(self._method.key), self._salt):
            raise PeerError("response to another request")
        return reader.u16()


def check_time(stamp: int, now: float) -> None:
    """Raises PeerError where the peer's clock is over ``SKEW`` seconds away."""
    if abs(stamp - now) > SKEW:
        raise PeerError(f"timestamp is {stamp - now:+.0f} seconds off")


class Server:
    """A server's layer. Feed ``decode`` until ``request`` is set; what it returned besides is payload.

    ``keys``: the main keys by user ("" where there is one without a name). ``identity``: the server's own key, where
    the users of a 2022 method are told apart by identity headers.
    """

    ended = False

    def __init__(
        self,
        method: Method,
        users: Sequence[User],
        seen: SaltFilter,
        random: Random,
        clock: Clock,
        key: bytes = b"",
        identities: dict[bytes, User] | None = None,
    ) -> None:
        self.request: Request | None = None
        self._method = method
        self._users = users
        self._seen = seen
        self._random = random
        self._clock = clock
        self._key = key
        self._identities = identities
        self._head = bytearray()
        self._salt = b""
        self._user: User | None = None
        self._opener: Opener | None = None
        self._size = -1
        self._sealer: Sealer | None = None
        self._plain = b""

    def decode(self, data: Buffer) -> Buffer:
        if self.request is not None:
            assert self._opener is not None
            return self._opener.feed(data)
        self._head += data
        return self._modern() if self._method.modern else self._classic()

    def _classic(self) -> bytes:
        method, head = self._method, self._head
        if self._opener is None:
            if len(head) < method.key + LENGTH:
                return b""
            self._check_salt(bytes(head[: method.key]))
            self._user = self._find(bytes(head[method.key : method.key + LENGTH]))
            self._opener = Opener(method, method.subkey(self._user.key, self._salt))
            del head[: method.key]
            self._seen.add(self._salt, self._clock())
        self._plain += bytes(self._opener.feed(head))
        self._head = bytearray()
        reader = Reader(self._plain)
        try:
            destination = socksaddr.read(reader)
        except Incomplete:
            return b""
        return self._accept(destination, reader.rest())

    def _find(self, length: bytes) -> User:
        """The user whose key opens the first length. All are tried, so that the time does not tell which."""
        found = None
        for user in self._users:
            try:
                Opener(self._method, self._method.subkey(user.key, self._salt)).one(length)
                found = user
            except AuthError:
                pass
        if found is None:
            raise AuthError("wrong password")
        return found

    def _check_salt(self, salt: bytes) -> None:
        self._salt = salt
        if salt in self._seen:
            raise AuthError("replayed salt")

    def _modern(self) -> bytes:
        method, head = self._method, self._head
        if self._opener is None:
            extra = 16 if self._identities is not None else 0
            start = method.key + extra
            if len(head) < start + _FIXED + TAG:
                return b""
            self._check_salt(bytes(head[: method.key]))
            self._user = self._identify(bytes(head[method.key : start]))
            opener = Opener(method, method.subkey(self._user.key, self._salt))
            reader = Reader(opener.one(head[start : start + _FIXED + TAG]))
            if reader.u8() != REQUEST:
                raise PeerError("not a request")
            check_time(reader.u64(), self._clock())
            self._size = reader.u16()
            self._seen.add(self._salt, self._clock())
            self._opener = opener
            del head[: start + _FIXED + TAG]
        size = self._size + TAG
        if len(head) < size:
            return b""
        reader = Reader(self._opener.one(head[:size]))
        destination = socksaddr.read(reader)
        padding = reader.u16()
        reader.skip(padding)
        if not padding and not reader.left:
            raise PeerError("neither padding nor payload")
        del head[:size]
        first = reader.rest()
        rest, self._head = self._head, bytearray()
        return self._accept(destination, first + bytes(self._opener.feed(rest)))

    def _identify(self, header: bytes) -> User:
        if self._identities is None:
            return self._users[0]
        name = ecb_decryptor(identity_key(self._key, self._salt)).update(header)
        user = self._identities.get(name)
        if user is None:
            raise AuthError("unknown identity")
        return user

    def _accept(self, destination: Address, payload: bytes) -> bytes:
        assert self._user is not None
        self.request = Request(destination, self._user.name)
        self._plain = b""
        return payload

    def encode(self, data: Buffer) -> Buffer:
        if self._sealer is not None:
            return self._sealer.seal(data)
        if not len(data):
            return b""
        return self._answer(memoryview(data))

    def _answer(self, data: memoryview) -> bytes:
        assert self._user is not None
        method = self._method
        salt = self._random(method.key)
        self._sealer = sealer = Sealer(method, method.subkey(self._user.key, salt))
        if not method.modern:
            return salt + bytes(sealer.seal(data))
        first = bytes(data[: method.chunk])
        fixed = bytes((RESPONSE,)) + u64(int(self._clock())) + self._salt + u16(len(first))
        out = salt + sealer.one(fixed) + sealer.one(first)
        return out + bytes(sealer.seal(data[method.chunk :]))

    def encode_eof(self) -> Buffer:
        return b""


def identities_of(users: Sequence[User]) -> dict[bytes, User]:
    """Users by what an identity header names them with."""
    return {identity(user.key): user for user in users}
