"""What userspace has carried is added up by outbound, source and process, as long as a flow runs and after."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.core.account import Key
from gateway.core.address import Address
from gateway.core.flow import Findings, Flow
from gateway.route.engine import Decision
from tests.unit.route.test_router import CLIENT, House, Talk, ask, echo_socket, run, serve, to, until


def carried(house: House) -> dict[Key, tuple[int, int, int]]:
    return {key: (sums.flows, sums.up, sums.down) for key, sums in house.router.carried()}


@pytest.mark.parametrize("waiting", [False, True])
def test_streams(waiting: bool) -> None:
    """``waiting``: an inbound that says when the outbound is connected, so that a task dials."""

    async def accepted(done: bool) -> None: ...

    async def body(house: House) -> None:
        server, address = await serve()
        clients = [
            house.client(address, port=port, accepted=accepted if waiting else None) for port in (40000, 40001, 1)
        ]
        for client in clients:
            assert await ask(client, b"ping") == b"pong:ping"
        key, curl = Key("direct", CLIENT.host), Key("direct", CLIENT.host, "/usr/bin/curl")
        assert carried(house) == {key: (2, 8, 18), curl: (1, 4, 9)}
        clients[0].close()
        clients[2].close()
        await until(lambda: len(house.router.flows()) == 1)
        assert carried(house) == {key: (2, 8, 18), curl: (1, 4, 9)}
        house.router.close_flows(lambda running: True)
        assert carried(house) == {key: (2, 8, 18), curl: (1, 4, 9)}
        clients[1].close()
        server.close()

    run(body, to("direct"))


def test_a_group_counts_for_its_member() -> None:
    async def body(house: House) -> None:
        server, address = await serve()
        client = house.client(address)
        assert await ask(client, b"ping") == b"pong:ping"
        assert carried(house) == {Key("direct", CLIENT.host): (1, 4, 9)}
        client.close()
        server.close()

    run(body, to("pick"))


def test_a_session_counts_for_each_outbound_that_it_uses() -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("route", "direct" if flow.destination == places[0] else "other", 0)

    places: list[Address] = []

    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        (one, a), (two, b) = echo_socket(), echo_socket()
        places.extend((a, b))
        talk = Talk(house)
        for sock, address, size in ((one, a, 10), (two, b, 20), (two, b, 20)):
            talk.send(bytes(size), address)
            data, name = await loop.sock_recvfrom(sock, 100)
            await loop.sock_sendto(sock, data * 2, name)
            await talk.got.get()
        direct, other = Key("direct", CLIENT.host), Key("other", CLIENT.host)
        assert carried(house) == {direct: (1, 10, 20), other: (1, 40, 80)}
        (session,) = house.router.sessions.running()
        assert (session.up, session.down) == (50, 100)
        session.links["direct", None].conn.close()
        session.expire(loop.time())
        assert list(session.links) == [("other", None)]
        assert (session.up, session.down) == (50, 100)
        assert carried(house) == {direct: (1, 10, 20), other: (1, 40, 80)}
        house.router.close_packets("in", CLIENT)
        assert carried(house) == {direct: (1, 10, 20), other: (1, 40, 80)}
        one.close()
        two.close()

    run(body, script)


def test_refusals() -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        if flow.destination.port == 3:
            yield Decision("route", "block", 0)
        yield Decision("reject", rule=0, method="drop" if flow.destination.port == 2 else "default")

    async def body(house: House) -> None:
        talk = Talk(house)
        talk.send(b"x", Address.of("203.0.113.1", 1))
        talk.send(b"x", Address.of("203.0.113.1", 2))
        clients: list[socket.socket] = [house.client(Address.of("203.0.113.1", port)) for port in (1, 2, 3)]
        await until(lambda: house.router.refusals == {"reject": 3, "drop": 2})
        assert carried(house) == {}
        for client in clients:
            client.close()

    run(body, script)
