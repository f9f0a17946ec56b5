"""Who else plays the router on our LANs, and whom clients ask for names: asks once, and listens a few seconds.

An answer that comes from this host is our own dnsmasq's. What is heard is judged by its form alone, nothing is taken
from it. RFC 4861 sections 4.1 and 4.2, RFC 2131, RFC 8415 (Solicit and Information-request).
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from random import SystemRandom
from typing import NamedTuple

from gateway.core.address import IP
from gateway.core.errors import PeerError
from gateway.kernel import conntrack, mark
from gateway.kernel.plan import DOT
from gateway.kernel.probe.finding import TIMEOUT, Finding, tool
from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.port import ETH_P_IP, ONLY_DHCP, attach

LISTENING = 5.0
"""Seconds: a router answers a solicitation within half a second (RFC 4861 section 6.2.6), dnsmasq looks for
three whether an address is free before it offers it."""
MOST = 64
"""Different ones told of one kind."""
ICMP6_FILTER = 1
SOLICITATION, ADVERTISEMENT = 133, 134
SOLICIT, ADVERTISE, REPLY, INFORMATION = 1, 2, 7, 11
CLIENT_PORT, SERVER_PORT = 546, 547
DNS = 53


class Lan(NamedTuple):
    """One of our interfaces as it is now; ``addresses`` with their prefixes."""

    name: str
    hardware: bytes
    addresses: tuple[str, ...]

    @property
    def own(self) -> frozenset[IP]:
        return frozenset(ip_interface(text).ip for text in self.addresses)


def look(lans: Iterable[str], seconds: float = LISTENING) -> Iterator[Finding]:
    """Findings of each kind; with 0 ``seconds`` nobody is asked or listened to. Raises OSError, KernelError,
    subprocess.SubprocessError."""
    found = [lan for name in lans if (lan := _lan(name)) is not None]
    if seconds > 0:
        routers, servers = listen(found, seconds)
        yield _finding("lan-routers", routers, "take them off the LAN, or filter them at the switch (RA guard)")
        yield _finding("lan-dhcp", servers, "switch them off, or filter them at the switch (DHCP snooping)")
    yield from resolvers(found)


def _finding(name: str, who: Iterable[str], remedy: str) -> Finding:
    detail = "; ".join(who)
    return Finding(name, not detail, detail, remedy if detail else "", needed=False)


def _lan(name: str) -> Lan | None:
    """None where it is absent or not Ethernet."""
    program = tool("ip")
    if program is None:
        return None
    done = subprocess.run([program, "-j", "address", "show", "dev", name], capture_output=True, timeout=TIMEOUT)
    entries = json.loads(done.stdout or b"[]")
    if done.returncode or not entries or entries[0].get("link_type") != "ether":
        return None
    addresses = tuple(f"{one['local']}/{one['prefixlen']}" for one in entries[0].get("addr_info", ()) if "local" in one)
    return Lan(name, bytes.fromhex(entries[0]["address"].replace(":", "")), addresses)


# -- routers and DHCP servers


def listen(lans: Iterable[Lan], seconds: float) -> tuple[list[str], list[str]]:
    """A line for each foreign router, and for each foreign DHCP server. Raises OSError."""
    routers: dict[str, None] = {}
    servers: dict[str, None] = {}
    with ExitStack() as stack:
        ears: dict[int, tuple[socket.socket, Callable[[socket.socket], str | None], dict[str, None]]] = {}
        poll = select.poll()
        for lan in lans:
            for ask, into in ((_ask_routers, routers), (_ask_dhcp4, servers), (_ask_dhcp6, servers)):
                sock, hear = ask(lan)
                stack.enter_context(sock)
                ears[sock.fileno()] = sock, hear, into
                poll.register(sock, select.POLLIN)
        end = time.monotonic() + seconds
        while ears and (left := end - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                sock, hear, into = ears[number]
                try:
                    line = hear(sock)
                except (OSError, PeerError, struct.error):
                    continue
                if line is not None and len(into) < MOST:
                    into[line] = None
    return [*routers], [*servers]


Ear = tuple[socket.socket, Callable[[socket.socket], str | None]]


def _bound(lan: Lan, kind: int, protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, lan.name.encode())
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(lan.name))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    return sock


def _try(send: Callable[[], object]) -> None:
    """An interface that is down or without IPv6 cannot ask; it may still hear."""
    try:
        send()
    except OSError:
        pass


def _ask_routers(lan: Lan) -> Ear:
    sock = _bound(lan, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    blocked = [0xFFFFFFFF] * 8
    blocked[ADVERTISEMENT // 32] ^= 1 << ADVERTISEMENT % 32
    sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *blocked))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    source = struct.pack("!BB", 1, 1) + lan.hardware
    _try(lambda: sock.sendto(struct.pack("!BBHI", SOLICITATION, 0, 0, 0) + source, ("ff02::2", 0)))
    return sock, lambda sock: _router(sock, lan)


def _router(sock: socket.socket, lan: Lan) -> str | None:
    data, extra, _, name = sock.recvmsg(2048, 64)
    host = ip_address(name[0].partition("%")[0])
    hops = [int.from_bytes(value, "little") for _, kind, value in extra if kind == socket.IPV6_HOPLIMIT]
    if len(data) < 16 or data[0] != ADVERTISEMENT or host in lan.own or not host.is_link_local or hops != [255]:
        return None
    lifetime = int.from_bytes(data[6:8], "big")
    says = [f"a default route for {lifetime} s"] if lifetime else []
    at = 16
    while at + 8 <= len(data) and data[at + 1]:
        kind, size = data[at], data[at + 1] * 8
        if kind == 3 and size == 32 and at + 32 <= len(data):
            says.append(f"prefix {IPv6Address(data[at + 16 : at + 32])}/{data[at + 2]}")
        at += size
    return f"router {host} on {lan.name} advertises {', '.join(says) or 'nothing'}"


def _ask_dhcp4(lan: Lan) -> Ear:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    attach(sock, ONLY_DHCP)
    sock.bind((lan.name, ETH_P_IP))
    xid = SystemRandom().getrandbits(32)
    asked = bytes([codec.Option.MASK, codec.Option.ROUTER, codec.Option.DNS])
    options: dict[int, bytes] = {
        codec.Option.MESSAGE_TYPE: bytes([codec.Type.DISCOVER]),
        codec.Option.PARAMETERS: asked,
    }
    message = codec.Message(1, xid, lan.hardware, options, flags=codec.BROADCAST_FLAG)
    packet = codec.wrap(codec.encode(message), IPv4Address(0), IPv4Address("255.255.255.255"))
    _try(lambda: sock.sendto(packet, (lan.name, ETH_P_IP, 0, 0, b"\xff" * 6)))
    return sock, lambda sock: _server4(sock, lan, xid)


def _server4(sock: socket.socket, lan: Lan, xid: int) -> str | None:
    payload, source = codec.unwrap(sock.recv(4096), verify=False)
    answer = codec.decode(payload)
    if answer.xid != xid or answer.type != codec.Type.OFFER or source in lan.own:
        return None
    return f"DHCP server {source} on {lan.name} offers {answer.yiaddr}"


def _ask_dhcp6(lan: Lan) -> Ear:
    sock = _bound(lan, socket.SOCK_DGRAM, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _try(lambda: sock.bind(("::", CLIENT_PORT)))
    ident = SystemRandom().getrandbits(24).to_bytes(3, "big")
    client = b"\0\3\0\1" + lan.hardware  # DUID-LL of Ethernet
    options = struct.pack("!HH", 1, len(client)) + client + struct.pack("!HHH", 8, 2, 0)
    for kind, more in ((SOLICIT, struct.pack("!HHIII", 3, 12, 1, 0, 0)), (INFORMATION, b"")):
        message = bytes([kind]) + ident + options + more
        _try(lambda message=message: sock.sendto(message, ("ff02::1:2", SERVER_PORT)))  # type: ignore[misc]
    return sock, lambda sock: _server6(sock, lan, ident)


def _server6(sock: socket.socket, lan: Lan, ident: bytes) -> str | None:
    data, name = sock.recvfrom(4096)
    host = ip_address(name[0].partition("%")[0])
    if len(data) < 4 or data[0] not in (ADVERTISE, REPLY) or data[1:4] != ident or host in lan.own:
        return None
    return f"DHCPv6 server {host} on {lan.name}"


# -- who asks others for names


def resolvers(lans: Collection[Lan]) -> Iterator[Finding]:
    """Clients whose flows to port 53 are not ours, or that speak DNS over TLS or QUIC, as far as conntrack knows of
    them still. Raises KernelError."""
    prefixes = [ip_interface(text).network for lan in lans for text in lan.addresses]
    own = {ip for lan in lans for ip in lan.own}
    found: dict[int, dict[str, None]] = {DNS: {}, DOT: {}}
    for entry in conntrack.dump():
        client, server, port = entry.source.ip, entry.destination.ip, entry.destination.port
        if port not in found or client is None or server is None or client in own or server in own:
            continue
        inside = any(client.version == one.version and client in one for one in prefixes)
        # Captured, or hijacked in userspace: its class is odd.
        ours = port == DNS and entry.mark & mark.ROUTE
        if inside and not ours and len(found[port]) < MOST:
            found[port][f"{client} asks {server}"] = None
    refused = _refused()
    note = f"; {refused} flows to encrypted resolvers were refused" if refused else ""
    plain, encrypted = ("; ".join(found[port]) for port in (DNS, DOT))
    yield Finding(
        "lan-dns", not plain, plain and f"{plain}: not captured", "gateway.capture_dns: true" if plain else "",
        needed=False,
    )  # fmt: skip
    yield Finding(
        "lan-encrypted-dns", not encrypted, (encrypted + note).removeprefix("; "),
        "gateway.dns_policy.dot: block" if encrypted else "", needed=False,
    )  # fmt: skip


def _refused() -> int:
    """What the owned table has counted, 0 where it is not there."""
    program = tool("nft")
    if program is None:
        return 0
    command = [program, "-j", "list", "counter", "inet", "gateway", "to_resolver"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
    entries = json.loads(done.stdout or b"{}").get("nftables", ()) if done.returncode == 0 else ()
    return sum(entry["counter"]["packets"] for entry in entries if "counter" in entry)
