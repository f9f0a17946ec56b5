"""TLS over a stream that is there, as a client that trusts what the system trusts: for what the gateway itself asks
for, downloads and probes. Whoever wants other TLS than that swaps ``secure``.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cache

from gateway.core.errors import DialError
from gateway.core.stream import Buffer, Stream

CHUNK = 65536


@cache
def _context() -> ssl.SSLContext:
    """Made once: it reads every certificate of the system (SSL_CERT_FILE, else where OpenSSL was told)."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def prepare() -> None:
    """Read them now, for those who measure what follows."""
    await asyncio.to_thread(_context)


async def secure(stream: Stream, host: str) -> Stream:
    """``stream`` under TLS 1.2 or later, with a certificate that is good for ``host`` (a name or an address). Raises
    DialError, stage "tls", also where the peer hangs up; ``stream`` is closed then."""
    context = await asyncio.to_thread(_context)
    made = SecureStream(stream, context, host)
    try:
        await made.shake()
    except (ssl.SSLError, OSError, EOFError) as error:
        stream.close()
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        raise DialError(f"{host}: {reason or 'the server hung up'}", "tls") from error
    except BaseException:
        stream.close()
        raise
    return made


class SecureStream:
    """See ``core.stream.Stream``."""

    def __init__(self, inner: Stream, context: ssl.SSLContext, host: str) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._pending = b""

    async def shake(self) -> None:
        """Raises SSLError, OSError, EOFError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._more():
                    raise EOFError from None
            except ssl.SSLError:
                await self._flush()  # the alert
                raise
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._inner.write(self._outgoing.read())

    async def _more(self) -> bool:
        data = await self._inner.read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    async def read(self, limit: int = CHUNK) -> bytes:
        """Raises OSError where the peer ended without saying so (RFC 8446 section 6.1): it may have been cut."""
        if self._pending:
            data, self._pending = self._pending[:limit], self._pending[limit:]
            return data
        while True:
            try:
                return self._tls.read(limit)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()

    async def write(self, data: Buffer) -> None:
        self._tls.write(data)
        await self._flush()

    async def write_eof(self) -> None:
        await self._inner.write_eof()

    def unread(self, data: bytes) -> None:
        self._pending = data + self._pending

    def close(self) -> None:
        self._inner.close()
