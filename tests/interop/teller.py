"""A SOCKS server that reaches nothing: it tells each client its own tag and where the client wanted to go."""

from __future__ import annotations

import contextlib
import io
import socket
import threading

from tests.interop.harness import DEADLINE, LOOPBACK, association, encode, exactly, free_port


class Teller:
    """The first bytes of every flow are answered with ``tag host port``. ``host``: an IPv4 address; ``make`` makes
    sockets of the network in which it serves."""

    def __init__(self, tag, host=LOOPBACK, port=0, make=socket.socket):
        self.tag = tag
        self.host, self.port = host, port or free_port()
        self.tcp = make(socket.AF_INET, socket.SOCK_STREAM)
        self.udp = make(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in (self.tcp, self.udp):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, self.port))
        self.tcp.listen(64)
        for work in (self._streams, self._datagrams):
            threading.Thread(target=work, daemon=True).start()

    def _word(self, target):
        return f"{self.tag} {target[0]} {target[1]}".encode()

    def _streams(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=(self.tcp.accept()[0],), daemon=True).start()

    def _one(self, sock):
        with sock, contextlib.suppress(OSError, AssertionError):
            sock.settimeout(DEADLINE)
            exactly(sock, exactly(sock, 2)[1])
            sock.sendall(b"\x05\x00")
            command = exactly(sock, 3)[1]
            target = _decode(lambda size: exactly(sock, size))
            sock.sendall(b"\x05\x00\x00" + encode(self.host, self.port))
            if command == 1 and sock.recv(65536):
                sock.sendall(self._word(target))
            while sock.recv(65536):
                pass

    def _datagrams(self):
        with contextlib.suppress(OSError):
            while True:
                data, source = self.udp.recvfrom(65536)
                if not data:
                    return  # shut down
                target, said = unwrapped(data)
                self.udp.sendto(data[: len(data) - len(said)] + self._word(target), source)

    def close(self):
        for sock in (self.tcp, self.udp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextlib.contextmanager
def tellers(*tags):
    found = {tag: Teller(tag) for tag in tags}
    try:
        yield found
    finally:
        for one in found.values():
            one.close()


def unwrapped(datagram):
    """((host, port), payload) of a datagram with a SOCKS header."""
    data = io.BytesIO(datagram)
    data.seek(3)
    return _decode(data.read), data.read()


def sent(port, host, target, data=b"?"):
    """((host, port) of who answers, what it says) to a datagram through the SOCKS inbound at ``port``; None where it
    never does."""
    with association(port) as relay, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for _ in range(20):
            sock.sendto(b"\0\0\0" + encode(host, target) + data, relay)
            with contextlib.suppress(TimeoutError):
                peer, said = unwrapped(sock.recv(2048))
                return peer, said.decode()
    return None


def _decode(take):
    """A SOCKS address as (host, port)."""
    kind = take(1)[0]
    if kind == 3:
        host = take(take(1)[0]).decode()
    elif kind == 1:
        host = socket.inet_ntop(socket.AF_INET, take(4))
    else:
        host = socket.inet_ntop(socket.AF_INET6, take(16))
    return host, int.from_bytes(take(2))
