"""Packets through the owned table: what userspace gets, what the kernel does alone, what is left after death."""

from __future__ import annotations

import errno
import socket

import pytest

from gateway.kernel import conntrack, mark

pytestmark = pytest.mark.root
KINDS = ("tcp", "udp")
PREFIXES = ("198.51.100.", "2001:db8:2::")


def entries(net, value=0, mask=0):
    return net.gateway.call(lambda: conntrack.dump(value, mask))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["client", "gateway"])
def test_verdicts(net, owner, place, kind, prefix):
    host = getattr(net, place)
    assert net.ask(kind, host, f"{prefix}1").startswith("server ")
    assert net.ask(kind, host, f"{prefix}2") == f"owner {prefix}2 80"
    assert net.ask(kind, host, f"{prefix}5") == f"owner {prefix}5 80"
    assert net.ask(kind, host, f"{prefix}1", 7777) == f"owner {prefix}1 7777"
    # A local sender is told by send(2) itself (EPERM), before the ICMP error arrives.
    with pytest.raises((ConnectionRefusedError, PermissionError) if place == "gateway" else ConnectionRefusedError):
        net.ask(kind, host, f"{prefix}3")
    with pytest.raises((TimeoutError, PermissionError)):
        net.ask(kind, host, f"{prefix}4", timeout=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_direct_flow_is_one_entry_with_its_class(net, owner, kind):
    with net.open(kind, net.client, "198.51.100.1") as sock:
        sock.send(b"?")
        assert sock.recv(100) == b"server 192.168.7.2"
        port = sock.getsockname()[1]
        found = [entry for entry in entries(net) if entry.source.port == port and entry.source.ip is not None]
    assert [entry.mark & mark.CLASS for entry in found] == [mark.DIRECT]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_learned_names_come_before_addresses(net, owner, kind, prefix):
    site = f"{prefix}6"
    assert net.ask(kind, net.client, site).startswith("server ")
    owner.tell(f"learn {site} none user")
    assert net.ask(kind, net.client, site) == f"owner {site} 80"
    owner.tell(f"learn {site} user reject")
    with pytest.raises(ConnectionRefusedError):
        net.ask(kind, net.client, site)
    owner.tell(f"learn {site} reject direct")
    assert net.ask(kind, net.client, site).startswith("server ")
    owner.tell(f"learn {site} direct none")


def test_a_running_flow_keeps_its_verdict(net, owner):
    with net.open("tcp", net.client, "198.51.100.7") as sock:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")
        owner.tell("learn 198.51.100.7 none user")
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")
        assert net.ask("tcp", net.client, "198.51.100.7").startswith("owner ")


def kept_objects(net):
    """Interval maps and learned sets with their handles."""
    lines = net.nft("-a", "list", "table", "inet", "gateway").splitlines()
    return [line for line in lines if line.startswith(("\tmap ", "\tset learned"))]


def test_a_reload_keeps_intervals_and_what_was_learned(net, owner):
    owner.tell("learn 198.51.100.8 none direct")
    before = kept_objects(net)
    assert len(before) == 2 + 10
    owner.tell("apply user")
    assert kept_objects(net) == before
    assert net.ask("tcp", net.client, "198.51.100.8").startswith("server ")
    assert net.ask("tcp", net.client, "198.51.100.9").startswith("owner ")
    assert "g1_" not in net.nft("list", "table", "inet", "gateway")
    owner.tell("apply direct")
    assert net.ask("tcp", net.client, "198.51.100.9").startswith("server ")


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_of_our_own_and_of_a_class_are_not_steered(net, owner, kind):
    for value in (mark.OWN, 3 << mark.SOCKET_SHIFT):
        assert net.ask(kind, net.gateway, "198.51.100.2", mark=value).startswith("server ")


def test_foreign_mark_bits_are_kept(net, owner):
    net.nft(
        "-f",
        "-",
        stdin=b"""
        table inet other {
            counter kept { }
            counter lost { }
            chain before {
                type filter hook prerouting priority -170;
                iifname "lan0" meta mark set 0x00abcdef
                iifname "lan0" ct state new ct mark set 0x00123456
            }
            chain arriving {
                type filter hook input priority 0;
                iifname "lan0" tcp dport 80 meta mark 0x01abcdef counter name kept accept
                iifname "lan0" tcp dport 80 counter name lost
            }
            chain passing {
                type filter hook forward priority 0;
                iifname "lan0" tcp dport 80 meta mark 0x00abcdef counter name kept accept
                iifname "lan0" tcp dport 80 counter name lost
            }
        }""",
    )
    try:
        assert net.ask("tcp", net.client, "198.51.100.2").startswith("owner ")
        assert net.ask("tcp", net.client, "198.51.100.1").startswith("server ")
        with net.open("udp", net.client, "198.51.100.2") as sock:
            sock.send(b"?")
            sock.recv(100)
            port = sock.getsockname()[1]
            marks = {entry.mark for entry in entries(net) if entry.source.port == port}
        assert marks == {0x01123456}
        kept, lost = (net.nft("list", "counter", "inet", "other", name) for name in ("kept", "lost"))
        assert "packets 0 " not in kept
        assert "packets 0 " in lost
    finally:
        net.nft("delete", "table", "inet", "other")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_without_a_listener_flows_are_ordinary(net, owner, kind, prefix):
    owner.tell("deaf")
    assert net.ask(kind, net.client, f"{prefix}2").startswith("server ")


def test_others_can_neither_flush_nor_change_it(net, owner):
    net.gateway.run(["nft", "flush", "ruleset"])
    assert not net.gateway.run(["nft", "delete", "table", "inet", "gateway"]).ok
    assert not net.gateway.run(["nft", "flush", "chain", "inet", "gateway", "forwarded"]).ok
    assert net.ask("tcp", net.client, "198.51.100.2").startswith("owner ")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_udp_flow_goes_back_to_the_kernel(net, owner, prefix):
    site = f"{prefix}5"
    with net.open("udp", net.client, site) as sock:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"owner ")
        here, port = sock.getsockname()[:2]
        owner.tell(f"back {here} {port} {site} 80")
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")


def test_after_sigkill_the_network_is_plain(net, owner, until):
    userspace = (mark.USER & mark.ROUTE, mark.ROUTE)
    with net.open("udp", net.client, "198.51.100.2") as sock, net.open("tcp", net.client, "198.51.100.1") as direct:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"owner ")
        direct.send(b"?")
        assert direct.recv(100).startswith(b"server ")
        assert entries(net, *userspace)
        owner.kill()
        assert until(lambda: not entries(net, *userspace))
        assert until(lambda: "gateway" not in net.nft("list", "tables"))
        # The same client port, the same destination: now an ordinary flow.
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")
        direct.send(b"?")
        assert direct.recv(100).startswith(b"server ")
    assert net.ask("tcp", net.client, "198.51.100.2").startswith("server ")


def test_a_second_gateway_is_refused(net, owner):
    from gateway.core.errors import KernelError
    from gateway.kernel.nft.writer import Writer
    from gateway.kernel.plan import Capture, Steering

    def second():
        writer = Writer()
        try:
            writer.apply(Steering((), (), (), (), 0, (), 0), Capture(("lan0",), 1))
        finally:
            writer.close()

    with pytest.raises((KernelError, IndexError)) as caught:
        net.gateway.call(second)
    assert isinstance(caught.value, IndexError) or caught.value.errno == errno.EBUSY
    assert net.ask("tcp", net.client, "198.51.100.2").startswith("owner ")


@pytest.mark.parametrize("kind", KINDS)
def test_dns_of_the_lan_is_redirected(net, owner, kind):
    sock = net.gateway.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(10)
        sock.bind(("", 5353))
        if kind == "tcp":
            sock.listen(4)
        with net.open(kind, net.client, "198.51.100.2", 53) as client:
            client.send(b"query")
            if kind == "tcp":
                flow, _ = sock.accept()
                with flow:
                    assert flow.recv(100) == b"query"
                    flow.send(b"reply")
            else:
                data, source = sock.recvfrom(100)
                assert data == b"query"
                sock.sendto(b"reply", source)
            assert client.recv(100) == b"reply"
