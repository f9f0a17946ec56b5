"""A scripted server that breaks the rules, on the wire: packets are counted; no crash, no storm, no foreign lease."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from gateway.config.fields import Prefix
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.codec import Message, Type
from gateway.uplink.options import StaticOptions, UplinkOptions
from gateway.uplink.uplinks import Uplinks

from .conftest import Net, inside, until
from .test_dhcp_servers import Gateway, uplink

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVER, OFFERED = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.99")
ETH_P_IP = 0x0800
Script = Callable[[Message, int], list[bytes]]


def answer(
    request: Message, kind: int, *, server: IPv4Address | None = SERVER, tail: bytes = b"", **change: Any
) -> bytes:
    """A reply's payload; options given as ``_51=b...`` replace, None removes."""
    options: dict[int, bytes] = {
        53: bytes([kind]), 54: (server or SERVER).packed, 51: (600).to_bytes(4, "big"), 1: b"\xff\xff\xff\0",
        3: SERVER.packed, 6: SERVER.packed,
    }  # fmt: skip
    if server is None:
        del options[54]
    fields: dict[str, Any] = {"op": 2, "xid": request.xid, "hardware": request.hardware, "yiaddr": OFFERED}
    for name, value in change.items():
        if name.startswith("_") and value is None:
            options.pop(int(name[1:]), None)
        elif name.startswith("_"):
            options[int(name[1:])] = value
        else:
            fields[name] = value
    return codec.encode(Message(options=options, **fields)).rstrip(b"\0") + tail


class Hostile:
    """Answers every DHCP message on ``isp0`` by ``script(message, its number)``; counts what came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[tuple[float, Message]] = []
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(ETH_P_IP))
        self.sock.bind(("isp0", ETH_P_IP))
        asyncio.get_running_loop().add_reader(self.sock, self._read)

    def kinds(self) -> list[int]:
        return [message.type for _, message in self.seen]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, where = self.sock.recvfrom(4096)
            if where[2] == socket.PACKET_OUTGOING or data[9] != 17 or data[22:24] != b"\0\x43":
                return
            message = codec.decode(data[28:])
            self.seen.append((time.monotonic(), message))
            for payload in self.script(message, len(self.seen)):
                self.send(payload)

    def send(self, payload: bytes) -> None:
        out = bytearray(codec.wrap(payload, SERVER, IPv4Address("255.255.255.255")))
        out[20:24] = struct.pack("!HH", 67, 68)
        with contextlib.suppress(OSError):
            self.sock.sendto(out, ("isp0", ETH_P_IP, 0, 0, b"\xff" * 6))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()


def kind_of(message: Message) -> int:
    return Type.OFFER if message.type == Type.DISCOVER else Type.ACK


def play(net: Net, script: Script, body: Callable[[Gateway, Hostile], Any]) -> Any:
    """The server's socket is opened in the ISP's namespace by a thread of its own."""
    ready, holder = threading.Event(), []

    async def serve() -> None:
        net.ip(net.isp, "link", "set", "isp0", "up")
        server = Hostile(script)
        stop = asyncio.Event()
        holder.extend((server, asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: inside(net.isp, serve))
    thread.start()
    assert ready.wait(20)

    async def main() -> Any:
        async with Gateway(net, uplink()) as gateway:
            return await body(gateway, holder[0])

    try:
        return inside(net.router, main)
    finally:
        holder[1].call_soon_threadsafe(holder[2].set)
        thread.join()


async def bound(gateway: Gateway, server: Hostile) -> Any:
    return await gateway.ready()


BAD: dict[str, Callable[[Message], list[bytes]]] = {
    "bootp": lambda m: [answer(m, 2, _53=None)],
    "forcerenew": lambda m: [answer(m, 9)],
    "unknown-type": lambda m: [answer(m, 77)],
    "wrong-xid": lambda m: [answer(m, 2, xid=m.xid ^ 1)],
    "wrong-chaddr": lambda m: [answer(m, 2, hardware=b"\x02\0\0\0\0\x77")],
    "request-as-reply": lambda m: [answer(m, 2, op=1)],
    "no-address": lambda m: [answer(m, 2, yiaddr=IPv4Address(0))],
    "no-cookie": lambda m: [answer(m, 2).replace(codec.COOKIE, b"abcd")],
    "truncated": lambda m: [answer(m, 2)[:size] for size in range(0, 240, 7)],
    "empty": lambda m: [b""],
    "garbage": lambda m: [os.urandom(size) for size in (1, 239, 240, 300, 1400)],
    "soup": lambda m: [answer(m, 9)[:240] + os.urandom(1000) for _ in range(50)],
    "oversized": lambda m: [answer(m, 9, _43=bytes(250), tail=bytes(1100))],
}


@pytest.mark.parametrize("name", BAD)
def test_survived(net: Net, name: str) -> None:
    def script(message: Message, number: int) -> list[bytes]:
        return BAD[name](message) if number == 1 else [answer(message, kind_of(message))]

    def count(gateway: Gateway, server: Hostile) -> Any:
        async def body() -> None:
            await gateway.ready()
            assert str(gateway.lease.address) == str(OFFERED)
            assert server.kinds() == [Type.DISCOVER, Type.DISCOVER, Type.REQUEST]

        return body()

    play(net, script, count)
    assert f"{OFFERED}/24" in net.ip(net.router, "addr")


@pytest.mark.parametrize(
    ("change", "prefix", "route"),
    [
        ({"_1": b"\xff\xff\xff"}, 24, "default via 192.0.2.1"),
        ({"_1": None}, 24, "default via 192.0.2.1"),
        ({"_1": b"\xff" * 4}, 32, "default via 192.0.2.1 dev wan proto dhcp src 192.0.2.99 metric 1000 onlink"),
        ({"_1": b"\xff\xff\xff\xfe"}, 31, "default via 192.0.2.1"),
        ({"_3": b"\xcb\0\x71\x01"}, 24, "default via 203.0.113.1 dev wan proto dhcp src 192.0.2.99 metric 1000 onlink"),
        ({"_51": bytes(4)}, 24, "default via 192.0.2.1"),
        ({"_51": b"\xff" * 4}, 24, "default via 192.0.2.1"),
        ({"_51": b"\x90\0\0\0"}, 24, "default via 192.0.2.1"),
        ({"server": None}, 24, "default via 192.0.2.1"),
        ({"_121": b"\x00\xc0\0\x02\x01" + b"\x18\xc6\x33\x64\xc0\0\x02\x07" * 60}, 24, "198.51.100.0/24 via 192.0.2.7"),
    ],
)
def test_odd_but_usable(net: Net, change: dict[str, Any], prefix: int, route: str) -> None:
    lease = play(net, lambda m, number: [answer(m, kind_of(m), **change)], bound)
    text = net.ip(net.router, "-4", "addr", "show", "wan")
    assert f"{OFFERED}/{prefix} " in text
    assert route in net.ip(net.router, "route")
    assert ("valid_lft forever" in text) == (change.get("_51") == b"\xff" * 4)
    assert lease.expiry - lease.t1 >= 14 or lease.expiry == lease.t1


def test_nak_storm(net: Net) -> None:
    """Eight seconds of OFFER and NAK: fewer than ten DISCOVERs, and no address."""

    async def body(gateway: Gateway, server: Hostile) -> list[int]:
        await until(lambda: server.seen)
        await asyncio.sleep(8)
        return server.kinds()

    kinds = play(net, lambda m, n: [answer(m, 2 if m.type == 1 else 6)], body)
    assert 2 <= kinds.count(Type.DISCOVER) < 10
    assert "inet " not in net.ip(net.router, "addr", "show", "wan")


def test_foreign_nak(net: Net) -> None:
    def script(message: Message, number: int) -> list[bytes]:
        if message.type == Type.REQUEST:
            return [answer(message, 6, server=IPv4Address("192.0.2.66")), answer(message, 5)]
        return [answer(message, 2)]

    async def body(gateway: Gateway, server: Hostile) -> None:
        await gateway.ready()
        assert server.kinds() == [Type.DISCOVER, Type.REQUEST]
        assert gateway.machine.dropped["foreign server"] == 1

    play(net, script, body)


def test_flood_in_bound_wakes_nobody(net: Net) -> None:
    """NAKs, FORCERENEWs and garbage at a bound client: nothing is even read."""

    async def body(gateway: Gateway, server: Hostile) -> None:
        await gateway.ready()
        request = server.seen[-1][1]
        count = len(server.seen)
        dropped = gateway.machine.dropped.total()
        for _ in range(200):
            for kind in (6, 9, 2):
                server.send(answer(request, kind))
        await asyncio.sleep(0.5)
        assert gateway.machine.dropped.total() == dropped
        assert len(server.seen) == count
        assert gateway.lease is not None

    play(net, lambda m, n: [answer(m, kind_of(m))], body)


def test_two_uplinks_elect_by_carrier(net: Net) -> None:
    """The cheaper one is elected while it carries; then the other; a pinned interface stays pinned."""
    net.ip(net.router, "link", "add", "wan2", "type", "veth", "peer", "isp1", "netns", net.isp)
    net.ip(net.isp, "link", "set", "isp1", "up")

    def static(name: str, number: int, priority: int) -> UplinkOptions:
        body = StaticOptions(
            address=[Prefix.parse(f"192.0.2.{number}/26")],
            gateway=[f"192.0.2.{number + 1}"],
            dns=[f"192.0.2.{number + 2}"],
        )
        return UplinkOptions(interface=name, static=body, priority=priority)

    async def main() -> None:
        async with Netlink() as netlink:
            monitor = Monitor(netlink)
            task = asyncio.create_task(monitor.run())
            options = [static("wan", 10, 1), static("wan2", 140, 2)]
            uplinks = Uplinks(options, netlink, monitor, net.tmp / "state", lambda step: None)
            await uplinks.start()
            await until(lambda: all(one.ready for one in uplinks.snapshots))
            assert [str(ip) for ip in uplinks.servers()] == ["192.0.2.12"]
            net.ip(net.isp, "link", "set", "isp0", "down")
            await until(lambda: [str(ip) for ip in uplinks.servers()] == ["192.0.2.142"])
            # The kernel marks the routes of a dead link up to a second later.
            await until(lambda: "dev wan2" in net.ip(net.router, "route", "get", "198.51.100.1"))
            assert [str(ip) for ip in uplinks.servers("wan")] == ["192.0.2.12"]
            net.ip(net.isp, "link", "set", "isp0", "up")
            await until(lambda: [str(ip) for ip in uplinks.servers("auto")] == ["192.0.2.12"])
            await uplinks.stop()
            task.cancel()

    inside(net.router, main)
