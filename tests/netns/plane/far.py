"""The programs of both ends. ``serve``: TCP and UDP echo that answer with the peer's address in front; ``tcp`` and
``udp``: one exchange, printed."""

from __future__ import annotations

import socket
import sys
import threading


def tcp(listener: socket.socket) -> None:
    while True:
        peer, name = listener.accept()
        threading.Thread(target=answer, args=(peer, name[0]), daemon=True).start()


def answer(peer: socket.socket, name: str) -> None:
    with peer:
        data = b""
        while more := peer.recv(1 << 20):
            data += more
        peer.sendall(name.removeprefix("::ffff:").encode() + b" %d" % len(data))


def udp(sock: socket.socket) -> None:
    while True:
        data, name = sock.recvfrom(65535)
        sock.sendto(name[0].encode() + b" %d %d " % (name[1], len(data)) + data[:8], name)


def serve() -> None:
    listener = socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    threading.Thread(target=tcp, args=(listener,), daemon=True).start()
    # Not the wildcard: an answer must leave from the address that was asked.
    for family, host in (
        (socket.AF_INET, "203.0.113.9"), (socket.AF_INET, "203.0.113.10"), (socket.AF_INET6, "2001:db8:1::9"),
    ):  # fmt: skip
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, 8000))
        threading.Thread(target=udp, args=(sock,), daemon=True).start()
    print("READY", flush=True)
    threading.Event().wait()


def ask_tcp(host: str, port: int, size: int) -> None:
    with socket.create_connection((host, port), timeout=30) as sock:
        peer = sock.getpeername()[0]
        sock.sendall(bytes(size))
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(1000):
            data += more
        print(data.decode(), peer)


def ask_udp(host: str, port: int, count: int) -> None:
    """All from one socket, to several servers where ``host`` names them, separated by commas."""
    hosts = host.split(",")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(30)
    for number in range(count):
        for one in hosts:
            sock.sendto(b"%d" % number, (one, port))
            data, name = sock.recvfrom(1000)
            print(one, name[0], name[1], data.decode())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        {"tcp": ask_tcp, "udp": ask_udp}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
