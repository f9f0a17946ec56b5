"""TLS as a layer: OpenSSL between two buffers in memory, fed with large reads. See ``core.stream.Layer``.

What TLS itself has to say later (an answer to a KeyUpdate, RFC 8446 section 4.6.3) goes with the next ``encode``;
session tickets are read and not kept.
"""

from __future__ import annotations

import ssl

from gateway.core.errors import PeerError
from gateway.core.room import Room
from gateway.core.stream import Buffer
from gateway.tls.verdict import is_for, reason

RECORD = 16384
"""Plain bytes of one record at most."""
STEP = 4 * RECORD
"""Bytes given to OpenSSL at a time: its buffer keeps the greatest size that it ever had."""


class TLSLayer:
    """First ``shake`` until it is done. ``sni`` None sends no name; then ``name`` is what the certificate is held
    against where the context verifies one. Raises ValueError for an ``sni`` that is no name."""

    __slots__ = ("_incoming", "_name", "_outgoing", "_room", "_tls", "ended")

    def __init__(self, context: ssl.SSLContext, sni: str | None, name: str = "") -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=sni)
        self._name = name
        self._room = Room()
        self.ended = False

    def shake(self, data: Buffer) -> bool:
        """Take the server's bytes (none at first); True when the handshake is done. What is to be sent then, in any
        case, is ``encode(b"")``. Raises PeerError, which says what was wrong."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise PeerError(reason(error, self._name or self._tls.server_hostname or "")) from error
        verified = self._tls.context.verify_mode == ssl.CERT_REQUIRED
        if self._name and verified and not is_for(self._tls.getpeercert() or {}, self._name):
            raise PeerError(f'its certificate is not for "{self._name}"')
        return True

    @property
    def protocol(self) -> str:
        """What ALPN chose; "" for nothing."""
        return self._tls.selected_alpn_protocol() or ""

    def encode(self, data: Buffer) -> Buffer:
        view = memoryview(data)
        write, parts = self._tls.write, []
        try:
            for start in range(0, len(view), RECORD):
                write(view[start : start + RECORD])
                if not (start + RECORD) % STEP:
                    parts.append(self._outgoing.read())
        except ssl.SSLError as error:
            raise PeerError(f"tls: {reason(error)}") from error
        if not parts:
            return self._outgoing.read()
        return b"".join((*parts, self._outgoing.read()))

    def decode(self, data: Buffer) -> Buffer:
        size = len(data) + self._incoming.pending
        if size <= RECORD:
            self._incoming.write(data)
            return self._few()
        # A record that began earlier may be longer when open than what came of it now.
        out = self._room.take(size + 2 * RECORD)
        view, at = memoryview(data), 0
        try:
            for start in range(0, len(view) or 1, STEP):
                self._incoming.write(view[start : start + STEP])
                at = self._many(out, at)
        except ssl.SSLError as error:
            raise PeerError(f"tls: {reason(error)}") from error
        return out[:at]

    def _many(self, out: memoryview, at: int) -> int:
        """What can be read now, to ``out`` from ``at`` on; where it ends."""
        incoming, read = self._incoming, self._tls.read
        try:
            while incoming.pending:
                count = int(read(RECORD, out[at:]))
                if not count:
                    self.ended = True
                    break
                at += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # instead of 0, where we have ended too
            self.ended = True
        return at

    def _few(self) -> bytes:
        """Without a buffer that an idle connection would keep."""
        self._room.take(0)
        incoming, read = self._incoming, self._tls.read
        parts: list[bytes] = []
        try:
            while incoming.pending:
                part = read(RECORD)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise PeerError(f"tls: {reason(error)}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encode_eof(self) -> Buffer:
        """close_notify; what the peer still sends can be read afterwards."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it has not said so itself yet
        return self._outgoing.read()
