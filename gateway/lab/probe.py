"""LAN clients that try again and again, each in a thread of its own, while something happens to the gateway."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import dns.exception
import dns.message
import dns.query

from gateway.lab.forecast import expect
from gateway.lab.stage import Stage

PACE, PATIENCE = 0.1, 1.0
"""Seconds between tries, and what a try may take."""
PORT = 40007
"""Source port of the UDP sockets, the same all the time."""


@dataclass(frozen=True, slots=True)
class Try:
    """``client``: whom the far end saw, "" where no answer came. Times are of ``time.monotonic``."""

    begun: float
    client: str
    why: str = ""


class Probes:
    """``tcp4 tcp6``: new connections. ``udp4 udp6``: one socket with a fixed port to a destination that is proxied.
    ``router names``, ``far names``: lookups at the router and at a resolver far away. They run in the with block."""

    def __init__(self, stage: Stage) -> None:
        home = stage.home
        near, far = home.sites[0], home.sites[3]
        work: dict[str, tuple[str, Callable[[], Callable[[], str]]]] = {
            "tcp4": ("lan1", lambda: lambda: page(near.ipv4)),
            "tcp6": ("lan1", lambda: lambda: page(near.ipv6)),
            "udp4": ("lan2", lambda: echo(far.ipv4)),
            "udp6": ("lan2", lambda: echo(far.ipv6)),
            "router names": ("lan2", lambda: lambda: lookup(home.router_lan4, near.names[0], near.ipv4)),
            "far names": ("lan2", lambda: lambda: lookup(home.resolver.ipv4, near.names[0], near.ipv4)),
        }
        self._stage = stage
        self._tries: dict[str, list[Try]] = {kind: [] for kind in work}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kind, *work[kind]), daemon=True) for kind in work]

    def __enter__(self) -> Probes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    def _run(self, kind: str, host: str, make: Callable[[], Callable[[], str]]) -> None:
        def body() -> None:
            attempt = make()
            while not self._ended.is_set():
                begun = time.monotonic()
                try:
                    made = Try(begun, attempt())
                except (OSError, ValueError, dns.exception.DNSException) as error:
                    made = Try(begun, "", f"{type(error).__name__} {error}".strip())
                self._tries[kind].append(made)
                self._ended.wait(max(0.0, begun + PACE - time.monotonic()))

        self._stage.lab.host(host).call(body, timeout=None)

    def last(self, kind: str) -> Try | None:
        """The newest try that was answered."""
        return next((one for one in reversed(self._tries[kind]) if one.client), None)

    def count(self, kind: str) -> int:
        return len(self._tries[kind])

    def judged(self, kind: str, since: float, grace: float, until: float) -> float:
        """Every try begun from ``since + grace`` to ``until`` was answered, to a direct client, and there was no pause.
        Gives the seconds from ``since`` until the first that was. Raises CheckError."""
        tries = [one for one in self._tries[kind] if since + grace <= one.begun <= until]
        lost = [f"{one.begun - since:.2f} s: {one.why}" for one in tries if not one.client]
        expect(not lost, f"{kind}: {len(lost)} of {len(tries)} tries lost after its death, at {'; '.join(lost[:3])}")
        # A stalled machine makes fewer tries; a third of them still covers the time.
        wanted = (until - since - grace) / PACE / 3
        expect(len(tries) >= wanted, f"{kind}: only {len(tries)} tries, the machine is too slow to tell")
        for one in tries:
            went = "direct" if "names" in kind else self._stage.way(one.client)
            expect(went == "direct", f"{kind}: {one.begun - since:.2f} s after its death the far end saw {one.client}")
        return next(one.begun - since for one in self._tries[kind] if one.begun >= since and one.client)


def page(address: str) -> str:
    """A new connection; the client that the site names."""
    with socket.create_connection((address, 80), PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: probe.example\r\nConnection: close\r\n\r\n")
        text = b""
        while found := sock.recv(65536):
            text += found
    return str(json.loads(text.partition(b"\r\n\r\n")[2])["client"][0])


def echo(address: str) -> Callable[[], str]:
    """A try on one socket that stays open."""
    six = ":" in address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if six else "0.0.0.0", PORT))

    def attempt() -> str:
        text = f"probe {random.getrandbits(64)}"
        deadline = time.monotonic() + PATIENCE
        sock.sendto(text.encode(), (address, 7))
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            answer = json.loads(sock.recv(65536))
            if answer["text"] == text:
                return str(answer["client"][0])
        raise TimeoutError("no answer")

    return attempt


def lookup(server: str, name: str, wanted: str) -> str:
    answer = dns.query.udp(dns.message.make_query(name, "A"), server, timeout=PATIENCE)
    found = [str(item) for rows in answer.answer for item in rows]
    if found != [wanted]:
        raise ValueError(f"{name} is {found}")
    return wanted
