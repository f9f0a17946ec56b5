"""What the interop tests of the proxy protocols share: our inbounds and outbounds in a loop of its own, a router that
sends everything one way, echo servers, and foreign programs run by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import pathlib
import socket
import struct
import subprocess
import tempfile
import threading
import time

import msgspec
import pytest

from gateway import catalog
from gateway.config.fields import dec_hook
from gateway.config.shared import DialerOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import GatewayError
from gateway.kernel.edge import Edge
from gateway.transport.dial import Dialer

DEADLINE = 60.0
SIZE = 1 << 20
LOOPBACK = "127.0.0.1"
LOOPBACKS = [pytest.param(LOOPBACK, id="v4"), pytest.param("::1", id="v6")]
"""Where servers listen and clients come from: each test of both families is one parameter more."""


class Direct:
    """The outbound of our servers in these tests; names mean loopback."""

    def __init__(self, wiring):
        self._dialer = Dialer(DialerOptions(), wiring)

    async def connect(self, flow, destination):
        return await self._dialer.connect(destination, flow)

    async def open_packets(self, flow, destination):
        return await self._dialer.open_packets(destination, flow)


class Loopback:
    def __init__(self, host):
        self._host = host

    async def lookup(self, domain, *, server="", strategy=""):
        assert domain in ("localhost", "echo.test"), domain
        return [Address.of(self._host, 0).host]


class Router:
    """Everything through one outbound; streams by read and write, so that layers are driven as any caller may."""

    def __init__(self):
        self.outbound = None
        self.flows = []
        self.closed = []
        self.errors = []
        self._sessions = {}
        self._tasks = set()

    def _spawn(self, work):
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def route_stream(self, flow, stream, accepted=None):
        self.flows.append(flow)
        self._spawn(self._stream(flow, stream, accepted))

    async def _stream(self, flow, stream, accepted):
        other = None
        try:
            try:
                other = await self.outbound.connect(flow, flow.destination)
            except GatewayError as error:
                self.errors.append(error)
                if accepted:
                    await accepted(False)
                return
            if accepted:
                await accepted(True)
            await asyncio.gather(pump(stream, other), pump(other, stream))
        except (OSError, GatewayError) as error:
            self.errors.append(error)
        finally:
            stream.close()
            if other:
                other.close()

    def route_packet(self, flow, data, reply, segment=0):
        self.flows.append(flow)
        key = (flow.inbound, flow.source, flow.user)
        queue = self._sessions.get(key)
        if queue is None:
            queue = self._sessions[key] = asyncio.Queue()
            self._spawn(self._packets(flow, queue))
        queue.put_nowait((bytes(data), flow.destination, segment, reply))

    async def _packets(self, flow, queue):
        conn = await self.outbound.open_packets(flow, flow.destination)
        newest = []
        conn.start(lambda data, peer, segment: newest[0](data, peer, segment))
        try:
            while True:
                data, destination, segment, reply = await queue.get()
                newest[:] = [reply]
                conn.send(data, destination, segment)
        finally:
            conn.close()

    def close_packets(self, inbound, source):
        self.closed.append((inbound, source))


async def pump(source, sink):
    while data := await source.read():
        await sink.write(data)
    await sink.write_eof()


class Gateway:
    """One inbound and, where ``outbound`` is given, one outbound of ours, else direct. ``with`` starts and stops it;
    ``port`` is the inbound's."""

    def __init__(self, inbound, outbound=None, host=LOOPBACK):
        self.port = free_port()
        self.router = Router()
        self._host = host
        self._inbound = {"listen": host, "listen_port": self.port, **inbound}
        self._outbound = outbound
        self._ready = threading.Event()
        self._failure = None

    def __enter__(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(DEADLINE)
        if self._failure:
            raise self._failure
        return self

    async def _run(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        edge = Edge(self._loop)
        wiring = Wiring(edge, self.router, Loopback(self._host), {}, None, None)
        try:
            inbound = build("inbound", "in", self._inbound, wiring)
            self.router.outbound = (
                build("outbound", "out", self._outbound, wiring) if self._outbound else Direct(wiring)
            )
            await inbound.start()
        except Exception as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        await self._stop.wait()
        await inbound.close()
        for task in tuple(self.router._tasks):
            task.cancel()
        await asyncio.gather(*self.router._tasks, return_exceptions=True)
        edge.close()

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)


def build(kind, tag, fields, wiring):
    fields = dict(fields)
    name = fields.pop("type")
    options = msgspec.convert(fields, catalog.options(kind, name), dec_hook=dec_hook)
    return catalog.runtime(kind, name)(tag, options, wiring)


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _ports():
    """Below the ephemeral range (Linux: 32768 up), so that no connection of another test takes one between the choice
    and the bind; each pytest-xdist worker has a share of its own, and each run begins somewhere else."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20000 + worker % 8 * 1500
    return itertools.islice(itertools.cycle(range(first, first + 1500)), os.getpid() % 1500, None)


_some_ports = _ports()


def free_port():
    """A port free for TCP and UDP, on every address of both families."""
    return next(port for port in _some_ports if _is_free(port))


def _is_free(port):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET6, kind) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                sock.bind(("::", port))
            except OSError:
                return False
    return True


@contextlib.contextmanager
def echo(host=LOOPBACK):
    """A TCP and UDP echo server on one port; TCP answers half-close with half-close."""
    port = free_port()
    tcp = socket.create_server((host, port), family=family(host), backlog=64)
    udp = socket.socket(family(host), socket.SOCK_DGRAM)
    udp.bind((host, port))

    def one(sock):
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(tcp.accept()[0],), daemon=True).start()

    def datagrams():
        with contextlib.suppress(OSError):
            while True:
                data, name = udp.recvfrom(65536)
                if data == b"end":
                    return
                udp.sendto(data, name)

    threads = [threading.Thread(target=work, daemon=True) for work in (accept, datagrams)]
    for thread in threads:
        thread.start()
    try:
        yield port
    finally:
        udp.sendto(b"end", (host, port))
        threads[1].join(5)
        tcp.close()
        udp.close()


@contextlib.contextmanager
def program(*command, ready=None, config=None, host=LOOPBACK):
    """Run a foreign program until the block ends; wait until TCP port ``ready`` answers. ``config`` is written to a
    file whose name takes the place of CONFIG in the command. What it prints is in the file ``process.log``."""
    with tempfile.TemporaryDirectory() as folder:
        if config is not None:
            file = pathlib.Path(folder) / "config.json"
            file.write_bytes(config if isinstance(config, bytes) else msgspec.json.encode(config))
            command = [str(file) if word == "CONFIG" else word for word in command]
        log = pathlib.Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, cwd=folder)
        process.log = log
        try:
            wait_for(ready, process, log, host)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port, process, log, host=LOOPBACK):
    end = time.monotonic() + DEADLINE
    while port and time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.05)
    assert not port, f"port {port} never answered: {log.read_text()}"


def socks_connect(port, host, target, user=None, at=LOOPBACK):
    """A SOCKS 5 client written for the tests alone; the server listens at address ``at``."""
    sock = socket.create_connection((at, port), DEADLINE)
    sock.sendall(b"\x05\x01\x02" if user else b"\x05\x01\x00")
    assert exactly(sock, 2)[0] == 5
    if user:
        name, password = (text.encode() for text in user)
        sock.sendall(bytes((1, len(name))) + name + bytes((len(password),)) + password)
        assert exactly(sock, 2) == b"\x01\x00"
    sock.sendall(b"\x05\x01\x00" + encode(host, target))
    answer = exactly(sock, 4)
    assert answer[1] == 0, answer
    exactly(sock, {1: 6, 4: 18}[answer[3]])
    return sock


def encode(host, port):
    for kind, number in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        with contextlib.suppress(OSError):
            return bytes((kind,)) + socket.inet_pton(number, host) + struct.pack("!H", port)
    return bytes((3, len(host))) + host.encode() + struct.pack("!H", port)


def exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"closed after {data!r}"
        data += more
    return data


def check_stream(sock, half_close=False):
    """1 MiB of random bytes there and back, compared by hash. ``half_close``: the sender ends its side while the
    bytes are still on their way back (shadowsocks-libev ends both ways then, and so does sing-box in Shadowsocks and in
    TLS)."""
    data = os.urandom(SIZE)
    sock.settimeout(DEADLINE)

    def send():
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    digest, size = hashlib.sha256(), 0
    while size < SIZE:
        part = sock.recv(65536)
        assert part, f"closed after {size} bytes"
        digest.update(part)
        size += len(part)
    thread.join()
    if not half_close:
        sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"", "more than was sent, or no end"
    sock.close()
    assert size == SIZE
    assert digest.digest() == hashlib.sha256(data).digest()


@contextlib.contextmanager
def association(port, at=LOOPBACK):
    """The address that takes the datagrams of one SOCKS 5 UDP ASSOCIATE."""
    with socket.create_connection((at, port), DEADLINE) as control:
        control.sendall(b"\x05\x01\x00")
        assert exactly(control, 2) == b"\x05\x00"
        control.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
        answer = exactly(control, 4)
        assert answer[1] == 0
        kind, size = {1: (socket.AF_INET, 4), 4: (socket.AF_INET6, 16)}[answer[3]]
        bound = exactly(control, size)
        yield (socket.inet_ntop(kind, bound) if any(bound) else at, *struct.unpack("!H", exactly(control, 2)))


def check_datagrams(port, host, target, count=5, at=LOOPBACK, also=None):
    """Datagrams of 900 B through SOCKS 5 UDP ASSOCIATE at ``port``, each asked for until it comes back; by turns to
    ``also`` too, another port of the same host."""
    with association(port, at) as relay, socket.socket(family(at), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        for _ in range(count):
            for place in (target,) if also is None else (target, also):
                ask(sock, relay, encode(host, place), os.urandom(900))


def ask(sock, relay, address, data):
    """The answer must name who was asked, where an address was."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        sock.sendto(b"\0\0\0" + address + data, relay)
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            while True:
                found = sock.recv(65536)
                if found.endswith(data):
                    assert address[0] == 3 or found == b"\0\0\0" + address + data
                    return
    raise AssertionError("datagram never came back")
