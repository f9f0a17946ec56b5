"""What a router says of a packet that its link does not carry."""

from __future__ import annotations

import socket
import struct

from gateway.lab.host import Host
from gateway.protocol.tun.codec import checksum


def answer(wire: socket.socket, kind: str, site: tuple[str, int], port: int) -> bytes:
    """The first packet of the site to that port with data, from a packet socket; of TCP the number is that of the next,
    since a sender believes nothing about what has arrived (RFC 5927)."""
    family = 6 if ":" in site[0] else 4
    source = socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, site[0])
    while True:
        packet = wire.recv(65536)
        start = (packet[0] & 15) * 4 if family == 4 else 40
        if packet[0] >> 4 != family or source != (packet[12:16] if family == 4 else packet[8:24]):
            continue
        if struct.unpack_from("!HH", packet, start) != (site[1], port):
            continue
        data = len(packet) - start - (packet[start + 12] >> 4) * 4
        if kind == "udp":
            return packet
        if data > 0:
            (number,) = struct.unpack_from("!I", packet, start + 4)
            return packet[: start + 4] + struct.pack("!I", (number + data) & 0xFFFFFFFF) + packet[start + 8 :]


def complain(host: Host, packet: bytes, mtu: int) -> None:
    """To its sender: fragmentation needed (RFC 792, 1191), packet too big (RFC 4443)."""
    if packet[0] >> 4 == 4:
        kind, protocol, to = socket.AF_INET, socket.IPPROTO_ICMP, socket.inet_ntop(socket.AF_INET, packet[12:16])
        text = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + packet[:28]
        text = text[:2] + checksum(text).to_bytes(2) + text[4:]
    else:
        kind, protocol, to = socket.AF_INET6, socket.IPPROTO_ICMPV6, socket.inet_ntop(socket.AF_INET6, packet[8:24])
        text = struct.pack("!BBHI", 2, 0, 0, mtu) + packet[:600]
    with host.socket(kind, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(text, (to, 0))
