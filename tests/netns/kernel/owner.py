"""The process that owns the table in these tests: a Steerer and transparent listeners that answer in its own name.

Run as ``python owner.py PORT``; commands are lines on stdin, each answered by one line on stdout.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
from dataclasses import replace
from ipaddress import ip_address

from gateway.core.address import Address
from gateway.kernel import mark
from gateway.kernel.plan import (
    Capture,
    LearnedChange,
    Origin,
    PortRow,
    Profile,
    SourceClass,
    SourceSpan,
    Span,
    Steering,
    Verdict,
)
from gateway.kernel.steer import Steerer

TRANSPARENT, TRANSPARENT6, ORIGINAL, ORIGINAL6 = 19, 75, 20, 74
mute = False
"""Whether datagrams get no answer."""
VERDICTS = {2: Verdict.USER, 3: Verdict.REJECT, 4: Verdict.DROP, 5: Verdict.SNIFF}


def spans(prefix: str) -> tuple[Span, ...]:
    base = int(ip_address(prefix))
    return tuple(Span(base + last, base + last, verdict) for last, verdict in VERDICTS.items())


def steering(extra: Verdict = Verdict.DIRECT) -> Steering:
    """Addresses ending in 2-5 have verdicts, port 7777 is always USER; ``extra`` is the verdict of all the others."""
    common = Profile(spans("198.51.100.0"), spans("2001:db8:2::"), extra, extra, True)
    always = Profile((), (), Verdict.USER, Verdict.USER, False)
    rows = tuple(
        PortRow(network, first, last, profile)
        for network in ("tcp", "udp")
        for first, last, profile in ((0, 7776, 0), (7777, 7777, 1), (7778, 65535, 0))
    )
    plain = tuple(PortRow(network, 0, 65535, 2) for network in ("tcp", "udp"))
    away = Profile((), (), Verdict.DIRECT, Verdict.DIRECT, False)
    # Socket class 3 is direct whatever the rules say.
    return Steering((common, always, away), (SourceClass(rows), SourceClass(plain)), (Origin((), (), 0),), ((3, 1),), 0)


def listen(port: int) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark.OWN))
            transparent(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_DGRAM:
                level = socket.SOL_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
                sock.setsockopt(level, ORIGINAL if family == socket.AF_INET else ORIGINAL6, 1)
            sock.bind(("", port))
            if kind == socket.SOCK_STREAM:
                sock.listen(16)
            threading.Thread(
                target=stream if kind == socket.SOCK_STREAM else datagrams, args=(sock,), daemon=True
            ).start()


def transparent(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_IP, TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, TRANSPARENT6, 1)


def stream(sock: socket.socket) -> None:
    while True:
        flow, _ = sock.accept()
        threading.Thread(target=answer, args=(flow,), daemon=True).start()


def answer(flow: socket.socket) -> None:
    host, port = flow.getsockname()[:2]
    with flow:
        while flow.recv(100):
            flow.sendall(f"owner {host} {port}".encode())


def datagrams(sock: socket.socket) -> None:
    while True:
        select.select([sock], [], [])
        _, extra, _, source = sock.recvmsg(2000, 200)
        port = struct.unpack_from("!H", extra[0][2], 2)[0]
        packed = extra[0][2][4:8] if sock.family == socket.AF_INET else extra[0][2][8:24]
        if not mute:
            say(str(ip_address(packed)), port, source)


def say(host: str, port: int, client: tuple[str, int]) -> None:
    """A datagram to a client in the name of ``host``."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        back.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark.OWN))
        transparent(back)
        back.bind((host, port))
        back.sendto(f"owner {host} {port}".encode(), client)


def verdict(word: str) -> Verdict | None:
    return None if word == "none" else Verdict[word.upper()]


def main() -> None:
    global mute
    port = int(sys.argv[1])
    steerer = Steerer(False if "unowned" in sys.argv else None)
    capture = Capture(("lan0",), port, dns_port=5353, wans=("wan0",))
    steerer.apply(steering(), capture)
    listen(port)
    print("ready", steerer.reaper, flush=True)
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "learn":
                address = ip_address(words[1])
                change = LearnedChange(0, address.version, int(address), verdict(words[2]), verdict(words[3]), 600)
                steerer.elements([change])
            elif words[0] == "apply":
                steerer.apply(steering(Verdict[words[1].upper()]), capture)
            elif words[0] == "users":
                spans_of = [SourceSpan(0, int(words[1]) - 1, 0), SourceSpan(int(words[1]), int(words[1]), 1)]
                steerer.apply(replace(steering(), local=(), users=tuple(spans_of)), capture)
            elif words[0] == "deaf":
                steerer.apply(steering(), Capture(("lan0",), port + 1, dns_port=5353))
            elif words[0] == "mute":
                mute = True
            elif words[0] == "say":
                say(words[1], int(words[2]), (words[3], int(words[4])))
            elif words[0] == "arm":
                steerer.apply(steering(), Capture(("lan0", "wan0"), port, one_armed=True))
            elif words[0] == "close":
                steerer.close()
                print("done", flush=True)
                continue
            elif words[0] == "off":
                device = ip_address(words[2])
                steerer.put_off("tcp" if words[1] == "tcp" else "udp", device, int(words[3]))
            elif words[0] == "back":
                steerer.hand_back(Address.of(words[1], int(words[2])), Address.of(words[3], int(words[4])))
            print("done", {name.name: value[0] for name, value in steerer.counters().items()}, flush=True)
        except Exception as error:
            print("error", repr(error), flush=True)


if __name__ == "__main__":
    main()
