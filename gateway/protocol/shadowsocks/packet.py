"""Shadowsocks over UDP, both roles, without I/O. Pure.

SIP004 for the AEAD methods (each packet stands alone), SIP022 section 3.2 for the 2022 ones (sessions, numbered
packets). Clocks and randomness are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import AuthError, PeerError
from gateway.core.stream import Buffer
from gateway.core.wire import Reader, u16, u64
from gateway.protocol.shadowsocks.cipher import (
    AEAD,
    TAG,
    Method,
    XChaCha20Poly1305,
    ecb_decryptor,
    ecb_encryptor,
    identity,
)  # fmt: skip
from gateway.protocol.shadowsocks.codec import REQUEST, RESPONSE, Clock, Random, User, check_time
from gateway.protocol.shadowsocks.replay import SaltFilter, Window

SESSIONS = 4096
"""Most UDP sessions of a 2022 server; at the bound the one unused for longest is forgotten."""
IDLE = 300.0
"""Seconds after which an unused session is forgotten."""
_LONG = 24


def seal(aead: AEAD, nonce: bytes, data: bytes) -> bytes:
    out = bytearray(len(data) + TAG)
    aead.encrypt_into(nonce, data, None, out)
    return bytes(out)


def unseal(aead: AEAD, nonce: bytes, data: Buffer) -> bytes:
    """Raises AuthError."""
    if len(data) < TAG:
        raise PeerError("packet too short")
    out = bytearray(len(data) - TAG)
    try:
        aead.decrypt_into(nonce, data, None, out)
    except InvalidTag:
        raise AuthError("packet does not verify") from None
    return bytes(out)


def seal_classic(method: Method, key: bytes, random: Random, address: Address, data: Buffer) -> bytes:
    """``none`` and AEAD: the same in both directions."""
    plain = socksaddr.write(address) + data
    if not method.key:
        return plain
    salt = random(method.key)
    return salt + seal(method.open(method.subkey(key, salt)), bytes(method.nonce), plain)


def open_classic(method: Method, key: bytes, data: Buffer) -> bytes:
    if not method.key:
        return bytes(data)
    view = memoryview(data)
    if len(view) < method.key + TAG:
        raise PeerError("packet too short")
    return unseal(method.open(method.subkey(key, bytes(view[: method.key]))), bytes(method.nonce), view[method.key :])


def split(plain: bytes) -> tuple[Address, bytes]:
    """Address and data of a decrypted body. Raises PeerError."""
    reader = Reader(plain)
    address = socksaddr.read(reader)
    return address, reader.rest()


class Peer:
    """One direction of a 2022 session as its receiver keeps it: key and packet numbers."""

    __slots__ = ("aead", "used", "window")

    def __init__(self, aead: AEAD, now: float) -> None:
        self.aead = aead
        self.window = Window()
        self.used = now


class Client:
    """A client's UDP session. Old server sessions are kept for a change of server session ids (two at most)."""

    def __init__(self, method: Method, keys: Sequence[bytes], random: Random, clock: Clock) -> None:
        self._method = method
        self._keys = tuple(keys)
        self._random = random
        self._clock = clock
        self._count = 0
        self._session = random(8)
        self._servers: OrderedDict[bytes, Peer] = OrderedDict()
        if not method.modern:
            return
        self._long = XChaCha20Poly1305(self._keys[-1]) if not method.identities else None
        if method.identities:
            self._aead = method.open(method.subkey(self._keys[-1], self._session))
            self._blocks = [ecb_encryptor(key) for key in self._keys[:-1] or self._keys]
            self._names = [identity(key) for key in self._keys[1:]]
            self._unblock = ecb_decryptor(self._keys[-1])

    def seal(self, data: Buffer, destination: Address) -> bytes:
        """One datagram. Raises LocalError for a name that does not fit."""
        method = self._method
        if not method.modern:
            return seal_classic(method, self._keys[-1], self._random, destination, data)
        header = self._session + u64(self._count)
        self._count += 1
        body = bytes((REQUEST,)) + u64(int(self._clock())) + u16(0) + socksaddr.write(destination) + data
        if self._long is not None:
            nonce = self._random(_LONG)
            return nonce + seal(self._long, nonce, header + body)
        named = b"".join(
            block.update(bytes(a ^ b for a, b in zip(name, header, strict=True)))
            for block, name in zip(self._blocks, self._names, strict=False)
        )
        return self._blocks[0].update(header) + named + seal(self._aead, header[4:], body)

    def open(self, data: Buffer) -> tuple[Address, bytes]:
        """(source, payload). Raises PeerError, AuthError; then the datagram is dropped."""
        method = self._method
        if not method.modern:
            return split(open_classic(method, self._keys[-1], data))
        view = memoryview(data)
        if self._long is not None:
            plain = unseal(self._long, bytes(view[:_LONG]) if len(view) > _LONG else bytes(_LONG), view[_LONG:])
            header, plain = plain[:16], plain[16:]
            if len(header) < 16:
                raise PeerError("packet too short")
            server = self._server(header[:8])
        else:
            if len(view) < 16 + TAG:
                raise PeerError("packet too short")
            header = self._unblock.update(view[:16])
            server = self._server(header[:8])
            plain = unseal(server.aead, header[4:], view[16:])
        number = int.from_bytes(header[8:], "big")
        if not server.window.check(number):
            raise AuthError("replayed packet")
        address, payload = self._body(plain)
        server.window.add(number)
        self._servers[header[:8]] = server
        self._servers.move_to_end(header[:8])
        while len(self._servers) > 2:
            self._servers.popitem(last=False)
        return address, payload

    def _server(self, session: bytes) -> Peer:
        found = self._servers.get(session)
        if found is None:
            # Not kept before a packet verified.
            aead = self._long or self._method.open(self._method.subkey(self._keys[-1], session))
            found = Peer(aead, self._clock())
        return found

    def _body(self, plain: bytes) -> tuple[Address, bytes]:
        reader = Reader(plain)
        if reader.u8() != RESPONSE:
            raise PeerError("not a response")
        check_time(reader.u64(), self._clock())
        if reader.take(8) != self._session:
            raise PeerError("response to another session")
        reader.skip(reader.u16())
        address = socksaddr.read(reader)
        return address, reader.rest()


class Session(NamedTuple):
    """Where an answer belongs: opaque to the caller, given back to ``Server.seal``."""

    user: User
    client: bytes
    own: bytes


class Datagram(NamedTuple):
    destination: Address
    payload: bytes
    session: Session


class _Entry:
    __slots__ = ("aead", "count", "own", "peer", "session")

    def __init__(self, peer: Peer, session: Session, aead: AEAD) -> None:
        self.peer = peer
        self.session = session
        self.aead = aead
        self.count = 0


class Server:
    """A server's side of all its UDP sessions."""

    def __init__(
        self,
        method: Method,
        users: Sequence[User],
        random: Random,
        clock: Clock,
        key: bytes = b"",
        identities: dict[bytes, User] | None = None,
    ) -> None:
        self._method = method
        self._users = users
        self._random = random
        self._clock = clock
        self._identities = identities
        self._seen = SaltFilter()
        self._sessions: OrderedDict[bytes, _Entry] = OrderedDict()
        if method.identities:
            outer = key if identities is not None else users[0].key
            self._unblock = ecb_decryptor(outer)
        elif method.modern:
            self._long = XChaCha20Poly1305(users[0].key)

    def open(self, data: Buffer) -> Datagram:
        """Raises PeerError, AuthError; then the datagram is dropped without an answer."""
        if not self._method.modern:
            return self._classic(data)
        view = memoryview(data)
        if self._method.identities:
            header, user, rest = self._separate(view)
            entry = self._entry(header[:8], user)
            self._fresh(entry, header)
            plain = unseal(entry.peer.aead, header[4:], rest)
        else:
            if len(view) < _LONG + 16 + TAG:
                raise PeerError("packet too short")
            plain = unseal(self._long, bytes(view[:_LONG]), view[_LONG:])
            header, plain = plain[:16], plain[16:]
            entry = self._entry(header[:8], self._users[0])
            self._fresh(entry, header)
        reader = Reader(plain)
        if reader.u8() != REQUEST:
            raise PeerError("not a request")
        now = self._clock()
        check_time(reader.u64(), now)
        reader.skip(reader.u16())
        destination = socksaddr.read(reader)
        entry.peer.window.add(int.from_bytes(header[8:], "big"))
        self._keep(header[:8], entry, now)
        return Datagram(destination, reader.rest(), entry.session)

    def _classic(self, data: Buffer) -> Datagram:
        for user in self._users:
            try:
                plain = open_classic(self._method, user.key, data)
            except AuthError:
                continue
            if self._method.key:
                salt = bytes(memoryview(data)[: self._method.key])
                if salt in self._seen:
                    raise AuthError("replayed packet")
                self._seen.add(salt, self._clock())
            destination, payload = split(plain)
            return Datagram(destination, payload, Session(user, b"", b""))
        raise AuthError("wrong password")

    def _separate(self, view: memoryview) -> tuple[bytes, User, memoryview]:
        skip = 32 if self._identities is not None else 16
        if len(view) < skip + TAG:
            raise PeerError("packet too short")
        header = self._unblock.update(view[:16])
        if self._identities is None:
            return header, self._users[0], view[skip:]
        name = bytes(a ^ b for a, b in zip(self._unblock.update(view[16:32]), header, strict=True))
        user = self._identities.get(name)
        if user is None:
            raise AuthError("unknown identity")
        return header, user, view[skip:]

    def _entry(self, client: bytes, user: User) -> _Entry:
        found = self._sessions.get(client)
        if found is not None and found.session.user is user:
            return found
        method, own = self._method, self._random(8)
        if method.identities:
            peer = Peer(method.open(method.subkey(user.key, client)), self._clock())
            return _Entry(peer, Session(user, client, own), method.open(method.subkey(user.key, own)))
        return _Entry(Peer(self._long, self._clock()), Session(user, client, own), self._long)

    @staticmethod
    def _fresh(entry: _Entry, header: bytes) -> None:
        if not entry.peer.window.check(int.from_bytes(header[8:], "big")):
            raise AuthError("replayed packet")

    def _keep(self, client: bytes, entry: _Entry, now: float) -> None:
        sessions = self._sessions
        entry.peer.used = now
        sessions[client] = entry
        sessions.move_to_end(client)
        while len(sessions) > SESSIONS or next(iter(sessions.values())).peer.used < now - IDLE:
            sessions.popitem(last=False)

    def seal(self, session: Session, data: Buffer, source: Address) -> bytes:
        """One datagram back. Raises PeerError where a 2022 session was forgotten meanwhile."""
        method = self._method
        if not method.modern:
            return seal_classic(method, session.user.key, self._random, source, data)
        entry = self._sessions.get(session.client)
        if entry is None or entry.session.own != session.own:
            raise PeerError("session is gone")
        header = session.own + u64(entry.count)
        entry.count += 1
        body = bytes((RESPONSE,)) + u64(int(self._clock())) + session.client + u16(0) + socksaddr.write(source) + data
        if not method.identities:
            nonce = self._random(_LONG)
            return nonce + seal(entry.aead, nonce, header + body)
        return ecb_encryptor(session.user.key).update(header) + seal(entry.aead, header[4:], body)
