"""A UDP server that answers each datagram with what it saw of it.

The answer is the record as JSON; ``text`` in it is the payload read as UTF-8, its first 200 characters, so that a
client can tell its answers apart, and ``length`` its size in bytes.
"""

from __future__ import annotations

import asyncio
import json
import socket

from gateway.lab.server.record import Journal, datagram_ttl

IP_RECVTTL = 12  # linux/in.h; the socket module has no name for it


def start(journal: Journal, address: str, port: int) -> socket.socket:
    """Answer on ``address`` and ``port`` as long as the running loop runs."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    made.bind((address, port))
    made.setblocking(False)
    local = made.getsockname()

    def answer() -> None:
        for _ in range(64):  # then let the other servers have a turn
            try:
                data, ancillary, _, client = made.recvmsg(65535, 256)
            except (BlockingIOError, ConnectionError):
                return
            text = data.decode(errors="replace")[:200]
            ttl = datagram_ttl(ancillary)
            record = journal.add("udp", "request", client, local, ttl=ttl, text=text, length=len(data))
            try:
                made.sendto(json.dumps(record).encode(), client)
            except OSError:
                continue

    asyncio.get_running_loop().add_reader(made, answer)
    return made
