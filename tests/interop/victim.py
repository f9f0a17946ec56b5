"""What the attacks are aimed at: ``gateway run`` as a process, with every inbound that strangers can reach, and a
witness whose flows must not notice."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

from tests.instances import instance
from tests.interop.harness import DEADLINE, echo, exactly, family, free_port, program, socks_connect
from tests.interop.test_shadowsocks import PASSWORDS

ROOT = Path(__file__).resolve().parents[2]
USER = ("me", "correct")
METHODS = ["aes-256-gcm", "chacha20-ietf-poly1305", "2022-blake3-aes-128-gcm", "2022-blake3-chacha20-poly1305"]
PROXIES = ["socks", "http", "mixed"]
GROWTH = 24 << 20
"""Bytes of resident memory that an attack may add, at its worst moment: some thousand connections in their handshake
take a few KB each, and one buffer of 1 GB would be forty times as much."""


class Victim:
    """``ports`` by inbound tag, each open on IPv4 and IPv6; ``target`` is an echo server behind it."""

    def __init__(self, process, ports, target):
        self.process = process
        self.ports = ports
        self.target = target

    def resident(self):
        """Bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def log(self):
        return self.process.log.read_text()

    def connect(self, tag, at):
        return socket.create_connection((at, self.ports[tag]), DEADLINE)

    def send(self, tag, at, data):
        """One datagram."""
        with socket.socket(family(at), socket.SOCK_DGRAM) as sock:
            sock.sendto(data, (at, self.ports[tag]))

    @contextlib.contextmanager
    def under_attack(self):
        """During the block a flow that was there before keeps talking, and afterwards a new one can; memory stays
        under its bound all the time; in the end no file is held and nothing went wrong inside."""
        before, files = self.resident(), self.files()
        with Witness(self) as witness:
            yield witness
        assert witness.failure is None, witness.failure
        assert witness.rounds > 0
        print(f"{(witness.peak - before) >> 10} KB more; the witness waited {witness.slowest * 1000:.0f} ms at most")
        assert witness.peak - before < GROWTH, f"{(witness.peak - before) >> 20} MB more"
        with socks_connect(self.ports["witness"], "127.0.0.1", self.target) as sock:
            sock.sendall(b"still there?")
            assert exactly(sock, 12) == b"still there?"
        wait_until(lambda: self.files() <= files, f"{self.files()} open files, {files} before")
        assert self.process.poll() is None
        assert not re.search(r"Traceback|Error|exception", self.log()), self.log()[-3000:]


class Witness:
    """One flow through the gateway that asks and hears all the time; the gateway's memory, watched."""

    def __init__(self, victim):
        self._victim = victim
        self._stop = threading.Event()
        self.rounds = self.peak = 0
        self.slowest = 0.0
        self.failure = None

    def __enter__(self):
        self._sock = socks_connect(self._victim.ports["witness"], "127.0.0.1", self._victim.target)
        self._sock.settimeout(DEADLINE)
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()
        return self

    def _talk(self):
        try:
            while not self._stop.is_set() or not self.rounds:
                data = os.urandom(1000)
                begun = time.monotonic()
                self._sock.sendall(data)
                assert exactly(self._sock, len(data)) == data
                self.slowest = max(self.slowest, time.monotonic() - begun)
                self.rounds += 1
                self.peak = max(self.peak, self._victim.resident())
                time.sleep(0.01)
        except (OSError, AssertionError) as error:
            self.failure = error

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join(DEADLINE)
        self._sock.close()


def wait_until(holds, message):
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, message
        time.sleep(0.05)


@contextlib.contextmanager
def victim():
    tags = [*PROXIES, *METHODS, "witness"]
    ports = {tag: free_port() for tag in tags}
    users = [{"username": USER[0], "password": USER[1]}]
    inbounds = [{"type": tag, "users": users} for tag in PROXIES]
    inbounds += [
        {"type": "shadowsocks", "method": method, "password": PASSWORDS[method], "udp_timeout": "1s"}
        for method in METHODS
    ]
    inbounds += [{"type": "mixed"}]
    for tag, inbound in zip(tags, inbounds, strict=True):
        inbound |= {"tag": tag, "listen": "::", "listen_port": ports[tag]}
    config = {"log": {"level": "info"}, "inbounds": inbounds, "outbounds": [{"type": "direct", "tag": "direct"}]}
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "gateway", "run", "-c", "CONFIG"]
    with (
        instance("victim") as name,
        echo() as target,
        program(*command, "--instance", name, config=config, ready=ports["witness"]) as process,
    ):
        yield Victim(process, ports, target)
