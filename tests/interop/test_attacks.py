"""Strangers and faulty clients at the real process: their flow ends, the others live, memory stays flat, and nothing
goes wrong inside. IPv4 and IPv6."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import socket
import struct
import time

import pytest

from gateway.core.address import Address
from gateway.protocol.shadowsocks import codec, packet
from gateway.protocol.shadowsocks.cipher import METHODS as CIPHERS
from gateway.protocol.shadowsocks.cipher import main_key
from tests.interop.harness import DEADLINE, LOOPBACKS, encode
from tests.interop.test_shadowsocks import PASSWORDS
from tests.interop.victim import METHODS, PROXIES, USER, victim, wait_until

SEED = random.SystemRandom().getrandbits(32)
TAGS = [*PROXIES, *METHODS]
GIGABYTE = 1 << 30

pytestmark = [
    pytest.mark.xdist_group("attacks"),
    pytest.mark.parametrize("at", LOOPBACKS),
]


@pytest.fixture(scope="module")
def aim():
    with victim() as found:
        yield found


def shadowsocks(method, target, password=None):
    """The layer of a client, and its request."""
    cipher = CIPHERS[method]
    key = main_key(cipher, PASSWORDS[method] if password is None else password)
    layer = codec.Client(cipher, [key], Address.of("127.0.0.1", target), os.urandom, time.time)
    return layer, layer.hello()


def wrong_password(method):
    return base64.b64encode(os.urandom(CIPHERS[method].key)).decode()


def connect_request(target, password):
    token = base64.b64encode(f"{USER[0]}:{password}".encode()).decode()
    place = f"127.0.0.1:{target}"
    return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode()


def socks_request(target, password):
    name, secret = USER[0].encode(), password.encode()
    login = bytes((1, len(name))) + name + bytes((len(secret),)) + secret
    return b"\x05\x01\x02" + login + b"\x05\x01\x00" + encode("127.0.0.1", target)


def request(tag, target, right=True):
    """All that a client says before its payload."""
    password = USER[1] if right else "wrong"
    if tag in METHODS:
        return shadowsocks(tag, target, None if right else wrong_password(tag))[1]
    return connect_request(target, password) if tag == "http" else socks_request(target, password)


def ended(sock):
    """Read until the other end closes; what it said."""
    data = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while more := sock.recv(65536):
            data += more
    sock.close()
    return data


def routed(aim, tag):
    """How many flows of that inbound have left."""
    return len(re.findall(rf" {tag}: .* to direct", aim.log()))


@pytest.mark.parametrize("tag", TAGS)
def test_a_right_request_is_served(aim, tag, at):
    """What the attacks below spoil is right otherwise."""
    before = routed(aim, tag)
    with aim.connect(tag, at) as sock:
        if tag in METHODS:
            layer, hello = shadowsocks(tag, aim.target)
            sock.sendall(hello + bytes(layer.encode(b"hello")))
            found = b""
            while found != b"hello":
                found += bytes(layer.decode(sock.recv(65536)))
        else:
            sock.sendall(request(tag, aim.target) + b"hello")
            found = b""
            while not found.endswith(b"hello"):
                more = sock.recv(100)
                assert more, found
                found += more
    assert routed(aim, tag) == before + 1


@pytest.mark.parametrize("tag", TAGS)
def test_wrong_password(aim, tag, at):
    before = routed(aim, tag)
    with aim.under_attack():
        for _ in range(30):
            sock = aim.connect(tag, at)
            sock.sendall(request(tag, aim.target, right=False) + b"payload")
            sock.shutdown(socket.SHUT_WR)
            said = ended(sock)
            if tag in METHODS:
                assert said == b"", "a stranger is told nothing"
            else:
                assert said in (b"\x05\x02\x01\x01", b"") or said.startswith(b"HTTP/1.1 407")
    assert routed(aim, tag) == before


@pytest.mark.parametrize("tag", METHODS)
def test_replayed_salt(aim, tag, at):
    before = routed(aim, tag)
    layer, hello = shadowsocks(tag, aim.target)
    whole = hello + bytes(layer.encode(b"hello"))
    with aim.under_attack():
        with aim.connect(tag, at) as sock:
            sock.sendall(whole)
            assert sock.recv(1), "the first is served"
        for _ in range(20):
            sock = aim.connect(tag, at)
            sock.sendall(whole)
            sock.shutdown(socket.SHUT_WR)
            assert ended(sock) == b""
    assert routed(aim, tag) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("tag", METHODS)
def test_replayed_datagram(aim, tag, at):
    """The server behind sees the first one alone."""
    cipher = CIPHERS[tag]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, aim.under_attack():
        server.bind(("127.0.0.1", 0))
        server.settimeout(DEADLINE)
        client = packet.Client(cipher, [main_key(cipher, PASSWORDS[tag])], os.urandom, time.time)
        destination = Address.of("127.0.0.1", server.getsockname()[1])
        first = client.seal(b"first", destination)
        for _ in range(20):
            aim.send(tag, at, first)
        # One source a datagram: the fence is a session of its own, so that it comes after all of them.
        for number in range(5):
            aim.send(tag, at, client.seal(b"fence%d" % number, destination))
        found = {server.recv(100): None for _ in range(6)}
        server.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while data := server.recv(100):
                assert data not in found, "seen twice"
        assert b"first" in found


@pytest.mark.parametrize("tag", TAGS)
def test_truncated_at_each_byte(aim, tag, at):
    """By an end of stream, and by a reset."""
    before = routed(aim, tag)
    with aim.under_attack():
        for cut in range(400):
            whole = request(tag, aim.target)
            if cut >= len(whole):
                break
            sock = aim.connect(tag, at)
            sock.sendall(whole[:cut])
            if cut % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            else:
                sock.shutdown(socket.SHUT_WR)
                ended(sock)
    assert routed(aim, tag) == before


@pytest.mark.parametrize("tag", TAGS)
def test_garbage(aim, tag, at):
    print("seed", SEED)
    dice = random.Random(SEED)
    heads = {"socks": [b"\x05", b"\x05\x01\x02\x01", b"\x04\x01"], "mixed": [b"\x05\x01\x02", b"\x04", b"GET "]}
    with aim.under_attack():
        for _ in range(60):
            head = dice.choice([b"", *heads.get(tag, [b""])])
            sock = aim.connect(tag, at)
            with contextlib.suppress(OSError):  # it may be closed at the first byte
                sock.sendall(head + dice.randbytes(dice.choice((1, 60, 5000, 200_000))))
                sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                ended(sock)
            if tag in METHODS:
                aim.send(tag, at, dice.randbytes(dice.choice((0, 1, 16, 31, 32, 48, 49, 1400, 60_000))))


def announced(tag, target, number):
    """A right request that then announces what never comes, each in the ways its protocol has."""
    if tag in METHODS:
        layer, hello = shadowsocks(tag, target)
        cipher = CIPHERS[tag]
        sealer = layer._sealer
        # 65535 is the most that two bytes can say: too much for the older methods, right for the 2022 ones.
        return hello + bytes(layer.encode(b"x")) + sealer.one(b"\xff\xff") + b"part" * cipher.key
    if tag == "http" or number % 2:
        token = base64.b64encode(":".join(USER).encode()).decode()
        head = f"POST http://127.0.0.1:{target}/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {token}\r\n"
        chunked = f"Transfer-Encoding: chunked\r\n\r\n{GIGABYTE:x}\r\npart"
        return (head + (chunked if number % 4 < 2 else f"Content-Length: {GIGABYTE}\r\n\r\npart")).encode()
    return b"\x05\x01\x02\x01\xff" + b"n" * 255 + b"\xff" + b"p" * 254


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_a_gigabyte_announced(aim, tag, at):
    with aim.under_attack() as witness:
        socks = []
        for number in range(200):
            sock = aim.connect(tag, at)
            sock.sendall(announced(tag, aim.target, number))
            socks.append(sock)
        rounds = witness.rounds
        while witness.rounds < rounds + 50:
            assert witness.failure is None
            time.sleep(0.01)
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("tag", PROXIES)
def test_a_head_without_end(aim, tag, at):
    """100 MB of it, or as much as the other end takes."""
    heads = {"http": b"GET http://a/ HTTP/1.1\r\nA: ", "socks": b"\x04\x01\0\x50\x7f\0\0\1", "mixed": b"GET /"}
    with aim.under_attack(), aim.connect(tag, at) as sock:
        sock.sendall(heads[tag])
        sent = 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < 100 << 20:
                sent += sock.send(b"a" * 65536)
        assert sent < 50 << 20, "nobody stopped reading"
        with contextlib.suppress(ConnectionResetError):
            ended(sock)


@pytest.mark.slow
def test_silence(aim, at):
    """Nothing, one byte, or a byte now and then: each is closed in the end (15 s; strangers to Shadowsocks are read for
    another 30 s), and until then others are served."""
    with aim.under_attack():
        kinds = [(tag, kind) for tag in TAGS for kind in range(3) for _ in range(40)]
        waiting = {aim.connect(tag, at): (tag, kind, request(tag, aim.target)) for tag, kind in kinds}
        for sock, (_, kind, whole) in waiting.items():
            if kind:
                sock.sendall(whole[:1])
            sock.setblocking(False)
        sent, end = 1, time.monotonic() + 2 * DEADLINE
        while waiting:
            assert time.monotonic() < end, f"{len(waiting)} still open: {sorted({w[0] for w in waiting.values()})}"
            for sock, (_, kind, whole) in list(waiting.items()):
                try:
                    if kind == 2 and sent < 20:
                        sock.send(whole[sent : sent + 1])
                    if not sock.recv(1000):
                        raise BrokenPipeError
                except BlockingIOError:
                    continue
                except OSError:
                    del waiting[sock]
                    sock.close()
            sent += 1
            time.sleep(0.5)


def closed(sock):
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_thousands_half_open(aim, tag, at):
    """3000 connections that never finish their handshake, most of one client: it is stopped at its cap, another client
    is served at the same inbound meanwhile."""
    socks = []
    with aim.under_attack():
        try:
            for _ in range(3000):
                sock = aim.connect(tag, at)
                sock.sendall(b"\x05" if tag in ("socks", "mixed") else b"C")
                socks.append(sock)
            for sock in socks:
                sock.setblocking(False)
            wait_until(lambda: sum(map(closed, socks)) >= 1500, "the client is not stopped at its cap")
            other = "127.9.9.9" if at == "127.0.0.1" else "127.0.0.1"
            with socket.create_connection(("127.0.0.1", aim.ports[tag]), DEADLINE, (other, 0)) as sock:
                sock.sendall(request(tag, aim.target))
                wait_until(lambda: re.search(rf" {tag}: {other}:.* to direct", aim.log()), "not served")
        finally:
            for sock in socks:
                sock.close()
