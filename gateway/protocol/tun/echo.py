"""Echo requests that leave for real: raw sockets of a direct outbound, one a family, and whose answers these are."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from gateway.core.address import IP
from gateway.core.contracts import Echoes as Outbound
from gateway.core.contracts import Wiring
from gateway.kernel.edge import IN
from gateway.protocol.tun import codec
from gateway.protocol.tun.codec import Echo, Packet

log = logging.getLogger("gateway.tun")

MOST = 1024
"""Pings at once (client, identifier, destination); at the bound the one silent for longest is forgotten."""
IDLE = 60.0
"""Seconds without a request after which a ping is forgotten; a socket without pings is closed."""
BATCH = 32
LARGEST = 65535
SOL_RAW, ICMP_FILTER, ICMPV6_FILTER = 255, 1, 1
IP_TTL, IPV6_HOPLIMIT = 2, 52
HEARD = {4: (0, 3, 11, 12), 6: (1, 2, 3, 4, 129)}
"""ICMP types that say something of a request."""

Key = tuple[IP, int, IP, str]


class Ping(NamedTuple):
    """``identifier`` is the client's."""

    client: IP
    identifier: int
    destination: IP
    tag: str
    used: float


class Echoes:
    """``answer`` gets whole packets."""

    def __init__(self, wiring: Wiring, answer: Callable[[bytes], None]) -> None:
        self._wiring = wiring
        self._answer = answer
        self._pings: dict[int, Ping] = {}
        """By the identifier that we send, the last used one last."""
        self._numbers: dict[Key, int] = {}
        self._next = 0
        self._sockets: dict[tuple[str, int], socket.socket] = {}

    def ours(self, asked: Packet, said: Echo) -> bool:
        """Whether it is a request that we sent: routes lead it back to us."""
        ping = self._pings.get(said.identifier)
        return ping is not None and ping.destination == asked.destination and ping.client != asked.source

    def send(self, asked: Packet, said: Echo, outbound: Outbound) -> None:
        """Raises OSError: the destination cannot be reached."""
        number = self._number(asked, said, outbound.tag)
        sock = self._socket(outbound, asked.family)
        message = codec.write_echo(asked.family, codec.ECHO[asked.family], said._replace(identifier=number))
        level, kind = (socket.IPPROTO_IP, IP_TTL) if asked.family == 4 else (socket.IPPROTO_IPV6, IPV6_HOPLIMIT)
        sock.sendmsg([message], [(level, kind, struct.pack("=i", asked.hops))], 0, (str(asked.destination), 0))

    def _number(self, asked: Packet, said: Echo, tag: str) -> int:
        now = self._wiring.edge.loop.time()
        key = (asked.source, said.identifier, asked.destination, tag)
        number = self._numbers.get(key)
        if number is None:
            self._expire(now)
            while len(self._pings) >= MOST:
                self._forget(next(iter(self._pings)))
            while self._next in self._pings:
                self._next = (self._next + 1) & 0xFFFF
            number = self._numbers[key] = self._next
            self._next = (self._next + 1) & 0xFFFF
        self._pings.pop(number, None)
        self._pings[number] = Ping(*key[:3], tag, now)
        return number

    def _expire(self, now: float) -> None:
        for number, ping in list(self._pings.items()):
            if now - ping.used < IDLE:
                break
            self._forget(number)
        used = {(ping.tag, ping.client.version) for ping in self._pings.values()}
        for key in [key for key in self._sockets if key not in used]:
            self._drop(key)

    def _forget(self, number: int) -> None:
        ping = self._pings.pop(number)
        del self._numbers[ping.client, ping.identifier, ping.destination, ping.tag]

    def _socket(self, outbound: Outbound, family: int) -> socket.socket:
        key = (outbound.tag, family)
        sock = self._sockets.get(key)
        if sock is None:
            sock = outbound.echo_socket(socket.AF_INET if family == 4 else socket.AF_INET6)
            try:
                _filter(sock, family)
            except BaseException:
                sock.close()
                raise
            self._sockets[key] = sock
            self._wiring.edge.add(sock.fileno(), IN, partial(self._readable, sock, family))
        return sock

    def _readable(self, sock: socket.socket, family: int, events: int) -> None:
        for _ in range(BATCH):
            try:
                data, name = sock.recvfrom(LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            if (answer := self._translate(data, name[0].partition("%")[0], family)) is not None:
                self._answer(answer)

    def _translate(self, data: bytes, name: str, family: int) -> bytes | None:
        """An answer to one of our requests, or an error about one, as its client is to have it."""
        hops = codec.HOPS
        if family == 4:
            whole = codec.parse(data)
            if whole is None or whole.fragment:
                return None
            data, hops = data[whole.rest :], whole.hops
        said = codec.read_echo(data, codec.ECHO_REPLY[family])
        if said is not None:
            ping = self._pings.get(said.identifier)
            if ping is None or str(ping.destination) != name:
                return None
            said = said._replace(identifier=ping.identifier)
            kind = codec.ECHO_REPLY[family]
            message = codec.write_echo(family, kind, said, ping.destination, ping.client)
            return codec.packet(ping.destination, ping.client, message, hops)
        if len(data) < 8 or data[0] == codec.ECHO_REPLY[family]:
            return None
        quoted = codec.quoted_echo(data, family)
        if quoted is None:
            return None
        ping = self._pings.get(quoted[1].identifier)
        if ping is None or ping.destination != quoted[0]:
            return None
        asked = codec.request(ping.client, ping.destination, quoted[1]._replace(identifier=ping.identifier))
        return codec.error(asked, data[0], data[1], type(ping.client)(name), int.from_bytes(data[4:8], "big"))

    def _drop(self, key: tuple[str, int]) -> None:
        sock = self._sockets.pop(key)
        self._wiring.edge.remove(sock.fileno())
        sock.close()

    def close(self) -> None:
        """All pings are forgotten."""
        for key in list(self._sockets):
            self._drop(key)
        self._pings.clear()
        self._numbers.clear()


def _filter(sock: socket.socket, family: int) -> None:
    """Only ``HEARD``. Bits that are set are kept out (linux/icmp.h, RFC 3542 section 3.2 turned round)."""
    if family == 4:
        passed = sum(1 << kind for kind in HEARD[4])
        sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~passed))
        return
    words = [0xFFFFFFFF] * 8
    for kind in HEARD[6]:
        words[kind >> 5] &= ~(1 << (kind & 31))
    sock.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, struct.pack("=8I", *words))
