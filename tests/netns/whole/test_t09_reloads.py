"""T9: two hundred reloads, 10 ms apart, under new connections and bulk: none is reset, none goes another way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from gateway.lab.dials import Dials, figures, table

from .conftest import DIRECT, PROXIED, TARGETS, USERSPACE, Whole, leaked, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
WANTED = 200
EVERY = 0.01
"""Seconds between two signals. While one waits to be heeded another one is the same; so there are more of them."""
PACE = 0.02
"""Fifty new connections a second."""
BLOCK = 16384
TURNED = "198.51.100.77"
"""What each reload sends elsewhere."""


class Bulk:
    """A stream from a host that sends one block each 2 ms; what comes is compared at the end."""

    def __init__(self, whole: Whole, site: str) -> None:
        family = socket.AF_INET6 if ":" in site else socket.AF_INET
        with whole.server.socket(family) as listener:
            listener.bind((site, 0))
            listener.listen(1)
            listener.settimeout(5)
            self._near = whole.open("tcp", whole.client, site, listener.getsockname()[1])
            self._far, (self.seen, *_) = listener.accept()
        for sock in (self._near, self._far):
            sock.settimeout(10)
        self._ended = threading.Event()
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.bytes, self.error = 0, ""
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except OSError as error:
            self.error = f"{type(error).__name__} {error}"

    def _send(self) -> None:
        while not self._ended.wait(0.002):
            block = os.urandom(BLOCK)
            self.sent.update(block)
            self._near.sendall(block)
        self._near.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while data := self._far.recv(65536):
            self.received.update(data)
            self.bytes += len(data)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(20)
        self._near.close()
        self._far.close()


@contextmanager
def bulk(whole: Whole, *sites: str) -> Iterator[list[Bulk]]:
    streams = [Bulk(whole, site) for site in sites]
    try:
        yield streams
    finally:
        for stream in streams:
            stream.end()


def applied(whole: Whole) -> int:
    assert whole.process is not None
    return whole.process.err.read_text().count("configuration applied")


def generations(whole: Whole) -> set[int]:
    """Of the chains of the owned table."""
    text = whole.gateway.run(["nft", "list", "table", "inet", "gateway"], check=True).out
    return {int(number) for number in re.findall(r"chain g(\d+)_", text)}


def test_t09_reloads_break_and_misroute_nothing(whole: Whole) -> None:
    whole.start("closed")
    assert whole.process is not None
    path = whole.lab.folder / "gateway.json"
    value = json.loads(path.read_text())
    rules = value["route"]["rules"]
    (before,) = generations(whole)
    signals = 0
    with bulk(whole, DIRECT[0], DIRECT[1], PROXIED[0], PROXIED[1]) as streams:
        with Dials(whole.client, TARGETS, PACE) as dials:
            begun = time.monotonic()
            for number in count():
                turned = [{"ip_cidr": [TURNED], "outbound": "far"}] if number % 2 else []
                value["route"]["rules"] = turned + rules
                draft = path.with_suffix(".new")
                draft.write_text(json.dumps(value))
                draft.replace(path)
                whole.process.signal(signal.SIGHUP)
                signals += 1
                time.sleep(EVERY)
                if number % 50 == 0 and applied(whole) >= WANTED:
                    break
                assert time.monotonic() < begun + 200, f"{applied(whole)} only"
            took = time.monotonic() - begun
        assert [stream.seen for stream in streams] == ["203.0.113.1", "2001:db8:1::2", *USERSPACE]
        assert not [stream.error for stream in streams if stream.error]
    # The last signal is heeded too.
    assert until(lambda: (whole.gateway.run(["nft", "list", "ruleset"]).out.count(TURNED) > 0) == bool(number % 2))
    reloads = applied(whole)
    print(f"{signals} signals, {reloads} reloads in {took:.1f} s; bulk {sum(one.bytes for one in streams) >> 20} MiB")
    print(table([(way, figures([made for made in dials.made if made.name.startswith(way)], leaked))
                 for way in ("direct", "proxied")]))  # fmt: skip
    assert reloads >= WANTED
    assert "configuration kept" not in whole.process.err.read_text()
    (after,) = generations(whole)
    assert after - before >= WANTED, "each swapped the maps, and none is left"
    assert len(dials.made) > took / PACE / 2
    lost = [made for made in dials.made if not made.answered or leaked(made)]
    assert not lost, lost[:5]
    for stream in streams:
        assert not stream.error
        assert stream.received.digest() == stream.sent.digest()
        assert stream.bytes > BLOCK * 100
