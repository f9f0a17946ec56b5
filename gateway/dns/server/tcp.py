"""DNS server ``tcp``: one connection a query, two bytes of length before each message (RFC 1035 section 4.2.2)."""

from __future__ import annotations

from gateway.config.shared import DialerOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError, PeerError
from gateway.core.stream import Stream
from gateway.dns import message
from gateway.transport.dial import Dialer


class Options(DialerOptions, kw_only=True):
    server: str
    server_port: int = 53


class Server:
    """``exchange`` raises DialError, PeerError or OSError; the caller bounds its time."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._address = Address.of(options.server, options.server_port)
        self._dialer = Dialer(options, wiring)

    async def exchange(self, query: bytes) -> bytes:
        return await ask(self._dialer, self._address, query)

    async def close(self) -> None:
        """Nothing is kept between queries."""


async def ask(dialer: Dialer, address: Address, query: bytes) -> bytes:
    """One query over one connection. Raises as ``Server.exchange``."""
    stream = await dialer.connect(address)
    try:
        await stream.write(len(query).to_bytes(2, "big") + query)
        head = await _exactly(stream, 2)
        answer = await _exactly(stream, int.from_bytes(head, "big"))
    except OSError as error:
        raise DialError(f"{address}: {error.strerror or error}") from error
    finally:
        stream.close()
    if answer[:2] != query[:2] or not message.flags(answer) & message.QR:
        raise PeerError(f"dns: {address} answered another query")
    return answer


async def _exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await stream.read(size - len(data))
        if not part:
            raise PeerError("dns: connection closed inside an answer")
        data += part
    return bytes(data)
