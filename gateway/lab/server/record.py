"""What a site saw, as JSON lines in a file.

Fields of a record: ``at`` (time.time()), ``site``, ``service`` (``http https udp quic banner``), ``event`` (``open``:
a TCP connection came; ``request``: something was asked), ``client`` and ``local`` ([address, port]), ``ttl`` (of the
SYN or the datagram, null where unknown), and by service ``host sni path received text alpn clients``.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28  # linux/tcp.h


def plain(address: Any) -> list[Any]:
    """[address, port] of a socket address; IPv4 inside IPv6 as IPv4."""
    host = str(address[0]).partition("%")[0]
    return [host.removeprefix("::ffff:") if "." in host else host, address[1]]


def syn_ttl(connection: socket.socket) -> int | None:
    """TTL or hop limit with which the client's SYN arrived; None if the listener did not keep it (tcp(7))."""
    try:
        header = connection.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 256)
    except OSError:
        return None
    if len(header) < 20:
        return None
    return header[8] if header[0] >> 4 == 4 else header[7]


def listener(address: str, port: int) -> socket.socket:
    """A listening TCP socket that keeps the SYN of each connection."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address, port))
    made.listen(1024)
    made.setblocking(False)
    return made


def datagram_ttl(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """TTL or hop limit from the control messages of a datagram (IP_TTL, IPV6_HOPLIMIT)."""
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)):
            return int(struct.unpack("i", data[:4])[0])
    return None


class Journal:
    """The record file of one site; a record is one write, so a reader never sees half of one but at the end."""

    def __init__(self, site: str, file: Path) -> None:
        self.site = site
        self._handle = file.open("a", buffering=1)

    def add(self, service: str, event: str, client: Any, local: Any, **more: Any) -> dict[str, Any]:
        """Write a record and give it back."""
        record = {"at": time.time(), "site": self.site, "service": service, "event": event}
        record |= {"client": plain(client), "local": plain(local), **more}
        self._handle.write(json.dumps(record) + "\n")
        return record
