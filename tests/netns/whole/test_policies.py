"""What is left of the gateway when it is gone, for each failure policy."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket

import pytest

from .conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, ended, keepers, talk, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
ENDS = (signal.SIGKILL, signal.SIGTERM)
KINDS = ("tcp", "udp")
EVERY = tuple(itertools.product(KINDS, (0, 1)))


def alive(whole: Whole) -> None:
    """Everything works, each its way."""
    for kind, family in EVERY:
        assert whole.ask(kind, whole.client, DIRECT[family]) == KERNEL[family]
        assert whole.ask(kind, whole.client, PROXIED[family]) == USERSPACE[family]
    assert all(whole.pings(site) for site in DIRECT)
    assert whole.names("192.0.2.53") == "198.51.100.1", "captured, whatever the address"
    forwards(whole)


def forwards(whole: Whole) -> None:
    """From the uplink to a LAN host: declared ones only."""
    assert until(lambda: whole.works("tcp", whole.server, "203.0.113.1", 8080))
    assert until(lambda: whole.works("tcp", whole.server, "2001:db8:1::2", 80))
    assert not whole.works("udp", whole.server, "2001:db8:1::2", 80)


def own_services(whole: Whole) -> None:
    """What the router itself does for its LAN."""
    assert until(whole.names) == "198.51.100.1"
    assert whole.pings("192.168.7.1")
    assert whole.pings("2001:db8:1::1")


def direct_is(whole: Whole, works: bool) -> None:
    for kind, family in EVERY:
        check = whole.works if works else whole.refused
        assert until(lambda: check(kind, whole.client, DIRECT[family])), (kind, family)  # noqa: B023
    assert all(whole.pings(site) == works for site in DIRECT)


def names_leave(whole: Whole, works: bool) -> None:
    """Whether queries of the LAN reach a server outside: 53, and 853 (DNS over TLS, RFC 7858)."""
    with contextlib.ExitStack() as stack:
        for (kind, family), port in itertools.product(EVERY, (53, 853)):
            sock = whole.server.socket(
                (socket.AF_INET, socket.AF_INET6)[family], socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
            )
            stack.enter_context(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(2 if works else 0.2)
            sock.bind((DIRECT[family], port))
            if kind == "tcp":
                sock.listen()
            with contextlib.suppress(OSError), whole.open(kind, whole.client, DIRECT[family], port) as client:
                client.send(b"query")
            heard = False
            with contextlib.suppress(TimeoutError):
                heard = bool(sock.accept() if kind == "tcp" else sock.recv(100))
            assert heard == works, (kind, family, port)


@pytest.mark.parametrize("end", ENDS)
def test_open(whole: Whole, end: signal.Signals) -> None:
    whole.start("open")
    alive(whole)
    whole.end(end)
    direct_is(whole, True)
    for kind, family in EVERY:
        assert until(lambda: whole.works(kind, whole.client, PROXIED[family]))  # noqa: B023
    own_services(whole)
    names_leave(whole, True)
    forwards(whole)


@pytest.mark.parametrize("end", ENDS)
def test_closed(whole: Whole, end: signal.Signals) -> None:
    whole.start("closed")
    alive(whole)
    running = [whole.open(kind, whole.client, DIRECT[family]) for kind, family in EVERY]
    proxied = [whole.open(kind, whole.client, PROXIED[family]) for kind, family in EVERY]
    try:
        before = [talk(sock) for sock in running]
        assert all(talk(sock) for sock in proxied)
        whole.end(end)
        assert until(lambda: whole.tables() == {"gateway_base"})
        direct_is(whole, False)
        for kind, family in EVERY:
            assert whole.refused(kind, whole.client, PROXIED[family])
        assert [talk(sock) for sock in running] == before, "running direct flows go on"
        assert all(until(lambda: ended(sock)) for sock in proxied)  # noqa: B023
        own_services(whole)
        forwards(whole)
        names_leave(whole, False)
        whole.start("closed")
        alive(whole)
        assert [talk(sock) for sock in running] == before
    finally:
        for sock in running + proxied:
            sock.close()


def test_a_reload_changes_the_policy(whole: Whole) -> None:
    guarded = lambda: "chain guard" in whole.gateway.run(["nft", "list", "table", "inet", "gateway_base"]).out  # noqa: E731
    whole.start("closed")
    assert guarded()
    whole.reload("open")
    assert until(lambda: not guarded())
    whole.reload("closed")
    assert until(guarded)
    alive(whole)
    whole.reload("open")
    assert until(lambda: not guarded())
    whole.end(signal.SIGKILL)
    direct_is(whole, True)


@pytest.mark.parametrize("end", ENDS)
def test_hold(whole: Whole, end: signal.Signals) -> None:
    whole.start("hold")
    alive(whole)
    running = [whole.open(kind, whole.client, DIRECT[family]) for kind, family in EVERY]
    try:
        before = [talk(sock) for sock in running]
        whole.end(end)
        direct_is(whole, True)
        assert whole.tables() == {"gateway", "gateway_base"}
        for host, (kind, family) in itertools.product((whole.client, whole.gateway), EVERY):
            # A local UDP sender is not told: its datagrams are dropped.
            if (host.name, kind) != ("gateway", "udp"):
                assert until(lambda: whole.refused(kind, host, PROXIED[family])), (kind, family)  # noqa: B023
            assert not whole.works(kind, host, PROXIED[family])
            assert whole.works(kind, host, DIRECT[family])
        assert [talk(sock) for sock in running] == before
        own_services(whole)
        forwards(whole)
        whole.start("hold")
        assert len(keepers(whole)) == 1
        alive(whole)
        assert [talk(sock) for sock in running] == before
        whole.end(signal.SIGKILL)
        # Without the keeper it is "closed".
        os.kill(keepers(whole)[0], signal.SIGKILL)
        assert until(lambda: whole.tables() == {"gateway_base"})
        direct_is(whole, False)
        assert [talk(sock) for sock in running] == before
        whole.start("open")
        alive(whole)
        assert keepers(whole) == []
    finally:
        for sock in running:
            sock.close()


def test_down_ends_the_keeper(whole: Whole) -> None:
    whole.start("hold")
    whole.end(signal.SIGTERM)
    assert len(keepers(whole)) == 1
    assert whole.command("down").ok
    assert until(lambda: not keepers(whole))
    assert until(lambda: whole.tables() == set())
    for family in ("-4", "-6"):
        assert "2380" not in whole.gateway.run(["ip", family, "rule"], check=True).out
