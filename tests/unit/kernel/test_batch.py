"""Datagrams in batches, over loopback."""

import socket

import pytest

from gateway.kernel.batch import SIZE, SLOTS, Batch

LOOPBACK = {socket.AF_INET: ("0.0.0.0", "127.0.0.9"), socket.AF_INET6: ("::", "::1")}


def open_pair(family, info):
    wild, target = LOOPBACK[family]
    server = socket.socket(family, socket.SOCK_DGRAM)
    if info and family == socket.AF_INET:
        server.setsockopt(socket.IPPROTO_IP, 8, 1)
    elif info:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    server.bind((wild if info else target, 0))
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.settimeout(10)
    client.connect((target, server.getsockname()[1]))  # hears only what comes from the address it asked
    return server, client


@pytest.mark.parametrize("info", [True, False])
@pytest.mark.parametrize("family", list(LOOPBACK))
def test_answers_leave_in_their_slots(family, info):
    server, client = open_pair(family, info)
    batch = Batch(family, info)
    with server, client:
        assert batch.receive(server.fileno()) == []
        for turn in range(3):  # what one round left does not reach the next
            for number in range(10):
                client.send(bytes([turn, number]) * (number + 1))
            sizes = batch.receive(server.fileno())
            assert sizes == [2 * (number + 1) for number in range(10)]
            name = client.getsockname()
            for slot in range(10):
                assert batch.data[slot * SIZE : slot * SIZE + 2] == bytes([turn, slot])
                assert batch.name(slot) == name
                assert batch.host(slot) == socket.inet_pton(family, name[0])
                batch.put(slot, b"answer %d" % slot, 2)
            batch.send(server.fileno(), 0, 4)
            server.sendmsg([b"later"], batch.info(4), 0, batch.name(4))
            batch.send(server.fileno(), 5, 10)
            found = [client.recv(100) for _ in range(10)]
            expected = [bytes([turn, slot]) + b"answer %d" % slot for slot in range(10)]
            expected[4] = b"later"
            assert found == expected


def test_too_long_too_many_and_refused():
    server, client = open_pair(socket.AF_INET, True)
    batch = Batch(socket.AF_INET, True)
    with server, client:
        client.send(bytes(SIZE + 1))
        for _ in range(SLOTS):
            client.send(b"x")
        assert batch.receive(server.fileno()) == [SIZE] + [1] * (SLOTS - 1)
        assert batch.receive(server.fileno()) == [1]
        client.send(b"a")
        client.send(b"b")
        assert batch.receive(server.fileno()) == [1, 1]
        for slot in range(2):
            batch.put(slot, b"!", 1)
        batch._names[2:4] = b"\0\0"  # nobody can be answered at port 0; the next one still is
        batch.send(server.fileno(), 0, 2)
        assert client.recv(10) == b"b!"
    assert batch.receive(-1) == []
    batch.send(-1, 0, 2)
