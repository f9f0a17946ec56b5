"""``python -m gateway.lab.client.dials TARGET...``: dial on and on, each target in turn, until SIGTERM.

A target is ``NAME,KIND,ADDRESS,PORT[,SOURCE]``, KIND ``tcp`` or ``udp``, SOURCE an address to dial from. A dial is a
new socket that sends one byte and waits for the far end's first word. At the end each is one line of JSON: name, when
it began (``time.monotonic``), seconds it took, what came: the word, ``refused`` (an error that somebody told),
``reset`` (of a connection that stood), or ``silent``.
"""

from __future__ import annotations

import argparse
import errno
import json
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

REFUSED, RESET, SILENT = "refused", "reset", "silent"
MOST = 2000
"""Dials at once; while as many wait none is begun."""


class Target(NamedTuple):
    name: str
    kind: str
    address: str
    port: int
    source: str = ""


def target(text: str) -> Target:
    """Raises ValueError."""
    name, kind, address, port, *source = text.split(",")
    if kind not in ("tcp", "udp"):
        raise ValueError(f"{kind} is neither tcp nor udp")
    return Target(name, kind, address, int(port), *source)


class Dial:
    """One socket of its own. ``connected``: what it sends is on its way."""

    def __init__(self, to: Target, begun: float) -> None:
        self.name, self.begun, self.connected = to.name, begun, to.kind == "udp"
        family = socket.AF_INET6 if ":" in to.address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM if self.connected else socket.SOCK_STREAM)
        self.sock.setblocking(False)
        if to.source and not self.connected:
            self.sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port comes with connect

    def begin(self, to: Target, ports: Iterator[int]) -> str:
        """What came at once, "" where nothing did."""
        if self.connected:
            # Conntrack takes a port that was drawn again for the flow that it belonged to half a minute ago.
            self.sock.bind((to.source, next(ports)))
        elif to.source:
            self.sock.bind((to.source, 0))
        code = self.sock.connect_ex((to.address, to.port))
        if code not in (0, errno.EINPROGRESS):
            return REFUSED
        return self.send() if self.connected else ""

    def send(self) -> str:
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return REFUSED
        try:
            self.sock.send(b"?")
        except OSError:
            return REFUSED
        self.connected = True
        return ""

    def receive(self) -> str:
        try:
            data = self.sock.recv(200)
        except BlockingIOError:
            return ""
        except OSError:
            return REFUSED if self.sock.type == socket.SOCK_DGRAM else RESET
        return data.split()[0].decode(errors="replace") if data.strip() else RESET


class Dialer:
    def __init__(self, targets: list[Target], pace: float, patience: float) -> None:
        self._targets, self._pace, self._patience = cycle(targets), pace, patience
        self._ports = cycle(range(10000, 32768))
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[Dial] = deque()
        self.done: list[tuple[str, float, float, str]] = []
        self.ended = False

    def run(self) -> None:
        due = time.monotonic()
        while not self.ended:
            now = time.monotonic()
            if now >= due and len(self._waiting) < MOST:
                self._start(next(self._targets), now)
                due = max(due + self._pace, now)
            self._turn(max(0.0, due - time.monotonic()))
        deadline = time.monotonic() + self._patience
        while self._waiting and time.monotonic() < deadline:
            self._turn(0.05)

    def _start(self, to: Target, now: float) -> None:
        dial = Dial(to, now)
        if said := dial.begin(to, self._ports):
            self._end(dial, said)
            return
        events = selectors.EVENT_READ if dial.connected else selectors.EVENT_WRITE
        self._selector.register(dial.sock, events, dial)
        self._waiting.append(dial)

    def _turn(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            dial: Dial = key.data
            if dial.connected:
                said = dial.receive()
            elif not (said := dial.send()):
                self._selector.modify(dial.sock, selectors.EVENT_READ, dial)
            if said:
                self._forget(dial, said)
        now = time.monotonic()
        while self._waiting and (self._waiting[0].sock.fileno() < 0 or now - self._waiting[0].begun > self._patience):
            dial = self._waiting.popleft()
            if dial.sock.fileno() >= 0:
                self._forget(dial, SILENT)

    def _forget(self, dial: Dial, said: str) -> None:
        self._selector.unregister(dial.sock)
        self._end(dial, said)

    def _end(self, dial: Dial, said: str) -> None:
        dial.sock.close()
        self.done.append((dial.name, dial.begun, time.monotonic() - dial.begun, said))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=target, nargs="+")
    parser.add_argument("--pace", type=float, default=0.005, metavar="SECONDS")
    parser.add_argument("--patience", type=float, default=1.0, metavar="SECONDS")
    options = parser.parse_args()
    dialer = Dialer(options.target, options.pace, options.patience)

    def end(number: int, frame: object) -> None:
        dialer.ended = True

    signal.signal(signal.SIGTERM, end)
    dialer.run()
    sys.stdout.write("".join(json.dumps(row) + "\n" for row in dialer.done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
