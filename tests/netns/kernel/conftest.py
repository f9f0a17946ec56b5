"""client - gateway - server, and a process on the gateway that owns the table (owner.py)."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan

HERE = Path(__file__).parent
PORT = 7893
T = TypeVar("T")
SITES = tuple(f"198.51.100.{n}" for n in range(1, 10)) + tuple(f"2001:db8:2::{n}" for n in range(1, 10))
PORTS = (80, 7777)

TOPOLOGY = Topology(
    "kernel",
    (
        Plan(
            "client",
            addresses={"eth0": ("192.168.7.2/24", "2001:db8:1::2/64")},
            routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1")),
        ),
        Plan(
            "gateway",
            addresses={"lan0": ("192.168.7.1/24", "2001:db8:1::1/64"), "wan0": ("203.0.113.1/24", "2001:db8:3::1/64")},
            routes=(Route("default", "203.0.113.2"), Route("default6", "2001:db8:3::2")),
            sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"},
        ),
        Plan(
            "server",
            addresses={
                "eth0": ("203.0.113.2/24", "2001:db8:3::2/64"),
                "lo": tuple(f"{site}/{128 if ':' in site else 32}" for site in SITES),
            },
            routes=(Route("default", "203.0.113.1"), Route("default6", "2001:db8:3::1")),
        ),
    ),
    (
        Link(End("client", "eth0"), End("gateway", "lan0")),
        Link(End("gateway", "wan0"), End("server", "eth0")),
    ),
)


class Server:
    """Answers TCP and UDP at every site address with who asked."""

    def __init__(self, host: Host, sites: Sequence[str] = SITES, ports: Sequence[int] = PORTS) -> None:
        self.socks: list[socket.socket] = []
        for site in sites:
            family = socket.AF_INET6 if ":" in site else socket.AF_INET
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = host.socket(family, kind)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((site, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen(16)
                    self.socks.append(sock)
        self.stop, self.stopped = os.pipe()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        poll = select.poll()
        known = {sock.fileno(): sock for sock in self.socks}
        for number in (*known, self.stop):
            poll.register(number, select.POLLIN)
        listening = {n for n, sock in known.items() if sock.type == socket.SOCK_STREAM}
        while True:
            for number, _ in poll.poll():
                if number == self.stop:
                    for sock in known.values():
                        sock.close()
                    return
                sock = known[number]
                if number in listening:
                    flow, _ = sock.accept()
                    known[flow.fileno()] = flow
                    poll.register(flow.fileno(), select.POLLIN)
                elif sock.type == socket.SOCK_STREAM:
                    try:
                        data = sock.recv(100)
                        if data:
                            sock.sendall(f"server {sock.getpeername()[0]}".encode())
                    except OSError:
                        data = b""
                    if not data:
                        poll.unregister(number)
                        known.pop(number).close()
                else:
                    _, source = sock.recvfrom(2000)
                    sock.sendto(f"server {source[0]}".encode(), source)

    def close(self) -> None:
        os.write(self.stopped, b"x")
        self.thread.join(10)
        os.close(self.stop)
        os.close(self.stopped)


class Owner:
    """owner.py on the gateway."""

    def __init__(self, host: Host, *words: str) -> None:
        command = ["ip", "netns", "exec", host.namespace, sys.executable, str(HERE / "owner.py"), str(PORT), *words]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."},
            cwd=HERE.parents[2],
        )  # fmt: skip
        word, reaper = self.line().split()
        assert word == "ready"
        self.reaper = int(reaper)

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline()

    def tell(self, text: str) -> str:
        """The answer to a command."""
        assert self.child.stdin is not None
        self.child.stdin.write(text + "\n")
        self.child.stdin.flush()
        answer = self.line()
        assert answer.startswith("done"), answer
        return answer

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def close(self) -> None:
        self.kill()
        # Its reaper may still delete entries: not those of the next test.
        until(lambda: not alive(self.reaper))
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


class Net:
    def __init__(self, lab: Lab) -> None:
        self.client, self.gateway, self.server = (lab.host(name) for name in ("client", "gateway", "server"))

    def open(
        self, kind: str, host: Host, site: str, port: int = 80, *, mark: int = 0, source: int = 0, timeout: float = 10
    ) -> socket.socket:
        """A connected socket of ``host``."""
        family = socket.AF_INET6 if ":" in site else socket.AF_INET
        sock = host.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        sock.settimeout(timeout)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        try:
            if source:
                sock.bind(("", source))
            sock.connect((site, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def ask(self, kind: str, host: Host, site: str, port: int = 80, **options: float) -> str:
        """Who answers at ``site``; raises as the socket does."""
        with self.open(kind, host, site, port, **options) as sock:  # type: ignore[arg-type]
            sock.send(b"?")
            return sock.recv(200).decode()

    def nft(self, *words: str, stdin: bytes | None = None) -> str:
        return self.gateway.run(["nft", *words], check=True, stdin=stdin).out


def alive(pid: int) -> bool:
    """A zombie, which nobody may reap here, is not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def until(work: Callable[[], T], seconds: float = 20) -> T:
    """``work()`` as soon as it is true, or at last whatever it is."""
    end = time.monotonic() + seconds
    while not (found := work()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab:
        net = Net(lab)
        for family in ("-4", "-6"):
            net.gateway.run(["ip", family, "rule", "add", "fwmark", "0x01000000/0x01000000", "lookup", "2380",
                             "priority", "9000"], check=True)  # fmt: skip
            net.gateway.run(
                ["ip", family, "route", "add", "local", "default", "dev", "lo", "table", "2380"], check=True
            )
        server = Server(net.server)
        try:
            yield net
        finally:
            server.close()


@pytest.fixture
def owner(net: Net) -> Iterator[Owner]:
    owner = Owner(net.gateway)
    try:
        yield owner
    finally:
        owner.close()


@pytest.fixture
def unowned(net: Net) -> Iterator[Owner]:
    """As on a kernel that knows no owners."""
    owner = Owner(net.gateway, "unowned")
    try:
        yield owner
    finally:
        owner.close()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., object]:
    return until
