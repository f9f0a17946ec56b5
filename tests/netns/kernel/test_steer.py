"""Packets through the owned table: what userspace gets, what the kernel does alone, what is left after death."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys

import pytest

from gateway.core.errors import KernelError
from gateway.kernel import conntrack, mark
from gateway.kernel.nft import base as base_table
from gateway.kernel.nft.library import Library, owners
from gateway.kernel.nft.writer import Writer
from gateway.kernel.plan import Base, Capture, Origin, PortForward, PortRow, Profile, SourceClass, Steering, Verdict
from gateway.kernel.probe.policies import foreign_policies
from gateway.kernel.probe.ruleset import read

from .conftest import Owner

pytestmark = pytest.mark.root
KINDS = ("tcp", "udp")
FORWARDS = (PortForward("tcp", 8080, "192.168.7.2", 80),)
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


@pytest.mark.parametrize("far", [
    "255.255.255.255", "192.168.7.255", "224.0.0.251", "ff02::fb", "192.168.7.1", "203.0.113.1", "2001:db8:3::1",
    "192.168.7.77",
])  # fmt: skip
def test_what_does_not_leave_is_not_steered(net, owner, far):
    """For everybody on the LAN, for one there, for the gateway under any of its addresses: port 7777 is userspace's."""
    before = owner.tell("count")
    with net.client.socket(socket.AF_INET6 if ":" in far else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.bind(("", 0))
        port = sock.getsockname()[1]
        for _ in range(3):
            with contextlib.suppress(ConnectionRefusedError):
                sock.sendto(b"?", (far, 7777))
        sock.settimeout(0.2)
        with contextlib.suppress(ConnectionRefusedError), pytest.raises(TimeoutError):
            sock.recv(100)
    assert owner.tell("count") == before
    assert not [entry for entry in entries(net) if entry.source.port == port and entry.mark & mark.CLASS]


def test_a_running_flow_keeps_its_verdict(net, owner):
    with net.open("tcp", net.client, "198.51.100.7") as sock:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")
        owner.tell("learn 198.51.100.7 none user")
        sock.send(b"?")
        assert sock.recv(100).startswith(b"server ")
        assert net.ask("tcp", net.client, "198.51.100.7").startswith("owner ")


def kept_objects(net):
    """Interval maps (of the rules) and learned sets with their handles."""
    lines = net.nft("-a", "list", "table", "inet", "gateway").splitlines()
    return [line for line in lines if line.startswith(("\tmap ip", "\tset learned"))]


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


AS_USER = """
import os, socket, sys
kind, site, real, effective = sys.argv[1:]
os.setresuid(int(real), int(effective), 0)
sock = socket.socket(socket.AF_INET6 if ":" in site else socket.AF_INET, getattr(socket, kind))
sock.settimeout(10)
sock.connect((site, 80))
sock.send(b"?")
print(sock.recv(100).decode())
"""


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_local_flows_by_user(net, owner, kind, prefix):
    """User 4001 is direct whatever the rules say; a program of others that takes on its rights is it."""
    owner.tell("users 4001")
    for real, effective, direct in ((4001, 4001, True), (4002, 4001, True), (4001, 4002, False), (0, 0, False)):
        command = [sys.executable, "-c", AS_USER, kind, f"{prefix}2", str(real), str(effective)]
        answer = net.gateway.run(command, check=True).out
        assert answer.startswith("server " if direct else "owner "), (real, effective)


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


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_userspace_says_first_is_answered_to_userspace(net, base, owner, until, prefix):
    """To a client that has not asked, or whose asking conntrack has forgotten (a late answer, a race with a reload):
    else its next datagrams would be replies, and leave with its private address."""
    site, said = f"{prefix}2", f"owner {prefix}2 80".encode()
    with net.open("udp", net.client, site) as sock:
        here, port = sock.getsockname()[:2]
        for _ in range(2):
            owner.tell(f"say {site} 80 {here} {port}")
            assert sock.recv(100) == said
            for _ in range(2):
                sock.send(b"?")
                assert sock.recv(100) == said
            net.gateway.call(conntrack.delete_userspace)
            sock.send(b"?")
            assert sock.recv(100) == said
            net.gateway.call(conntrack.delete_userspace)
        owner.tell(f"say {site} 80 {here} {port}")
        assert sock.recv(100) == said
        owner.kill()
        sock.settimeout(0.5)

        def alone():
            with contextlib.suppress(OSError):
                sock.send(b"?")
                return sock.recv(100).startswith(b"server ")
            return False

        assert until(alone)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_goes_back_to_the_kernel_stays_there_with_one_arm(net, owner, prefix):
    """What userspace sends on in the client's name leaves through a LAN there, and is no answer of a site."""
    site = f"{prefix}5"
    with net.open("udp", net.client, site) as sock:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"owner ")
        owner.tell("arm")
        here, port = sock.getsockname()[:2]
        owner.tell(f"back {here} {port} {site} 80")
        owner.tell(f"say {here} {port} {site} 80")
        assert sock.recv(100).startswith(b"server ")
        for _ in range(2):
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
    rows = tuple(PortRow(network, 0, 65535, 0) for network in KINDS)
    plain = Profile((), (), Verdict.DIRECT, Verdict.DIRECT, False)

    def second():
        writer = Writer()
        try:
            writer.apply(Steering((plain,), (SourceClass(rows),), (Origin((), (), 0),), (), 0), Capture(("lan0",), 1))
        finally:
            writer.close()

    with pytest.raises(KernelError) as caught:
        net.gateway.call(second)
    assert caught.value.errno == errno.EBUSY
    assert net.ask("tcp", net.client, "198.51.100.2").startswith("owner ")


@pytest.mark.parametrize("kind", KINDS)
def test_dns_of_the_lan_is_redirected(net, owner, kind):
    sock = net.gateway.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


@pytest.mark.parametrize("site", ["192.168.7.1", "2001:db8:1::1"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_listener_of_dns_is_for_captured_queries_alone(net, owner, kind, site):
    """There is no base table here, as with ``firewall: false``."""
    kinds = (
        socket.AF_INET6 if ":" in site else socket.AF_INET,
        socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM,
    )
    ours, other = (net.gateway.socket(*kinds) for _ in range(2))
    with ours, other, net.client.socket(*kinds) as client:
        for sock, port in ((ours, 5353), (other, 5354)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(10 if sock is other else 0.5)
            sock.bind((site, port))
            if kind == "tcp":
                sock.listen()
        client.settimeout(0.5)
        with contextlib.suppress(OSError):
            client.connect((site, 5353))
            client.send(b"query")
        with pytest.raises(TimeoutError):
            ours.accept() if kind == "tcp" else ours.recv(100)
        with net.client.socket(*kinds) as good:
            good.settimeout(10)
            good.connect((site, 5354))
            good.send(b"query")
            assert other.accept() if kind == "tcp" else other.recv(100)


@pytest.mark.parametrize("site", ["192.168.7.255", "255.255.255.255", "224.0.0.1", "ff02::1"])
def test_nor_is_it_for_what_is_sent_to_many(net, owner, site):
    family = socket.AF_INET6 if ":" in site else socket.AF_INET
    ours, other, client = (host.socket(family, socket.SOCK_DGRAM) for host in (net.gateway, net.gateway, net.client))
    with ours, other, client:
        for sock, port in ((ours, 5353), (other, 5354)):
            sock.bind(("", port))
            sock.settimeout(10 if sock is other else 0.5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        for port in (5353, 5354):
            client.sendto(b"query", (site, port))
        assert other.recv(100) == b"query"
        with pytest.raises(TimeoutError):
            ours.recv(100)


@pytest.mark.parametrize("site", ["192.168.7.1", "2001:db8:1::1"])
def test_after_sigkill_a_resolver_that_keeps_its_port_is_answered(net, base, owner, until, site):
    """The entry of its last query knows the way to our listener, which is gone; the LAN's name server is not. With the
    base table: without any chain of type nat the kernel would not look at what the entry says."""
    family = socket.AF_INET6 if ":" in site else socket.AF_INET
    ours, plain = (net.gateway.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    with ours, plain, net.open("udp", net.client, site, 53) as client:
        for sock, port in ((ours, 5353), (plain, 53)):
            sock.settimeout(10)
            sock.bind((site, port))
        client.send(b"query")
        _, source = ours.recvfrom(100)
        ours.sendto(b"ours", source)
        assert client.recv(100) == b"ours"
        assert len(entries(net, mark.NAMES, mark.CLASS)) == 1
        owner.kill()
        ours.close()
        assert until(lambda: "table inet gateway\n" not in net.nft("list", "tables") + "\n")
        assert until(lambda: not entries(net, mark.NAMES, mark.CLASS))
        client.send(b"query")
        _, source = plain.recvfrom(100)
        plain.sendto(b"plain", source)
        assert client.recv(100) == b"plain"


def test_counters_follow_the_verdicts(net, owner):
    for site in ("198.51.100.1", "198.51.100.2", "198.51.100.5"):
        net.ask("tcp", net.client, site)
    with pytest.raises(ConnectionRefusedError):
        net.ask("tcp", net.client, "198.51.100.3")
    answer = owner.tell("nothing")
    assert all(f"'{name}': 1" in answer for name in ("DIRECT", "USER", "SNIFF", "REJECT"))
    assert "'DROP': 0" in answer


@pytest.fixture
def base(net):
    """The ownerless table, as the gateway loads it."""
    net.gateway.call(lambda: base_table.apply(Library(), Base(("lan0",), ("wan0",), forwards=FORWARDS)))
    yield
    net.nft("delete", "table", "inet", "gateway_base")


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_base_table_direct_flows_are_masqueraded(net, base, owner, kind):
    assert net.ask(kind, net.client, "198.51.100.1") == "server 203.0.113.1"
    assert net.ask(kind, net.client, "198.51.100.2").startswith("owner ")
    # IPv6 is routed, not translated.
    assert net.ask(kind, net.client, "2001:db8:2::1") == "server 2001:db8:1::2"


@pytest.mark.slow
def test_doctor_names_what_a_foreign_firewall_lacks(net, base, owner):
    """One that drops what it does not know, as firewalld's and fw4's do, and lets its own connections answer."""
    hooks = ("input", "forward", "output")
    neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
    kind = "type filter hook {} priority filter + 10; policy drop"
    chains = [f"chain {hook} {{ {kind.format(hook)}; {neighbours}; }}" for hook in hooks]
    net.nft("-f", "-", stdin="\n".join(["table inet firewalld {", *chains, "}"]).encode())

    def finding():
        (found,) = net.gateway.call(lambda: list(foreign_policies(read())))
        return found

    def answers():
        found = []
        for kind in KINDS:
            for site in (f"{prefix}{number}" for prefix in PREFIXES for number in (1, 2)):
                with contextlib.suppress(OSError):
                    found.append(net.ask(kind, net.client, site, timeout=0.5).split()[0])
        return found

    try:
        found = finding()
        assert not found.ok
        assert {f"inet firewalld {hook}" for hook in hooks} <= set(found.detail.partition(":")[0].split(", "))
        assert answers() == []
        for command in found.remedy.split("; "):
            net.gateway.run(["sh", "-c", command], check=True)
        assert finding().ok
        assert answers() == ["server", "owner"] * 4
    finally:
        net.nft("delete", "table", "inet", "firewalld")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_unanswered_userspace_flow_stays_one_without_a_listener(net, base, owner, until, prefix):
    """conntrack has confirmed it without NAT: as an ordinary flow it would leave with its private address, until the
    client falls silent."""
    site = f"{prefix}2"
    seen = "203.0.113.1" if prefix == PREFIXES[0] else "2001:db8:1::2"
    with net.open("udp", net.client, site, timeout=0.5) as sock:
        port = sock.getsockname()[1]

        def classes():
            return [entry.mark & mark.CLASS for entry in entries(net) if entry.source.port == port]

        def asked():
            with contextlib.suppress(OSError):
                sock.send(b"?")
                return sock.recv(100).decode()
            return ""

        owner.tell("mute")
        sock.send(b"?")
        assert until(lambda: classes() == [mark.USER])
        owner.tell("deaf")
        assert [asked(), asked()] == ["", ""]
        assert classes() == [mark.USER]
        owner.kill()
        assert until(asked) == f"server {seen}"


def test_what_is_left_of_a_userspace_flow_never_leaves_unmasqueraded(net, base, owner, until):
    with net.open("udp", net.client, "198.51.100.2", timeout=0.5) as sock:
        sock.send(b"?")
        assert sock.recv(100).startswith(b"owner ")
        owner.kill()

        def asked():
            try:
                sock.send(b"?")
                return sock.recv(100)
            except OSError:  # rejected while the entry is there
                return b""

        assert until(asked) == b"server 203.0.113.1"


@pytest.mark.slow
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_put_off_begins_nothing_in_userspace(net, owner, until, kind, prefix):
    device = "192.168.7.2" if "." in prefix else "2001:db8:1::2"
    with net.open(kind, net.client, f"{prefix}2") as running:
        running.send(b"?")
        assert running.recv(100).startswith(b"owner ")
        owner.tell(f"off {kind} {device} 30")
        with pytest.raises(TimeoutError):
            net.ask(kind, net.client, f"{prefix}2", timeout=0.5)
        running.send(b"?")
        assert running.recv(100).startswith(b"owner "), "what runs goes on"
    (other,) = set(KINDS) - {kind}
    assert net.ask(other, net.client, f"{prefix}2").startswith("owner ")
    assert net.ask(kind, net.client, f"{prefix}1").startswith("server "), "the kernel's own flows do not count"
    # Said again it counts from then on, and it ends by itself: TCP's second SYN comes through.
    owner.tell(f"off {kind} {device} 1")
    if kind == "tcp":
        assert net.ask(kind, net.client, f"{prefix}2").startswith("owner ")
    else:
        net.ask(kind, net.client, f"{prefix}1")

        def answered():
            with contextlib.suppress(TimeoutError):
                return net.ask(kind, net.client, f"{prefix}2", timeout=0.2)

        assert until(answered, 5)


def test_a_port_forward_is_not_steered(net, base, owner):
    # The client's answers go to an address whose verdict is USER; the flow is not theirs to begin.
    owner.tell("learn 203.0.113.2 none user")
    with net.client.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("192.168.7.2", 80))
        listener.listen(4)
        listener.settimeout(10)
        with net.open("tcp", net.server, "203.0.113.1", 8080) as sock:
            flow, source = listener.accept()
            with flow:
                assert source[0] == "203.0.113.2"
                flow.send(b"hello")
                assert sock.recv(100) == b"hello"
    owner.tell("learn 203.0.113.2 user none")


MULTIPATH = 262  # IPPROTO_MPTCP


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_steered_client_of_several_paths_falls_back_to_one(net, owner, prefix):
    """A multipath client works through userspace, and the option does not get as far as the listener; on a direct flow
    it is left alone."""
    net.gateway.run(["sysctl", "-qw", "net.mptcp.enabled=1"])
    net.nft(
        "-f",
        "-",
        stdin=b"""
        table inet seen {
            counter steered { }
            counter direct { }
            chain arriving {
                type filter hook input priority 0;
                iifname "lan0" tcp option mptcp exists counter name steered
            }
            chain passing {
                type filter hook forward priority 0;
                iifname "lan0" tcp option mptcp exists counter name direct
            }
        }""",
    )
    try:
        for site, who in ((f"{prefix}2", "owner "), (f"{prefix}1", "server ")):
            family = socket.AF_INET6 if ":" in site else socket.AF_INET
            with net.client.socket(family, socket.SOCK_STREAM, MULTIPATH) as sock:
                sock.settimeout(10)
                sock.connect((site, 80))
                sock.send(b"?")
                assert sock.recv(100).decode().startswith(who)
        steered, direct = (net.nft("list", "counter", "inet", "seen", name) for name in ("steered", "direct"))
        assert "packets 0 " in steered
        assert "packets 0 " not in direct
    finally:
        net.nft("delete", "table", "inet", "seen")


@pytest.mark.parametrize("end", ["kill", "close"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_without_owners_the_reaper_takes_the_table_away(net, unowned, until, prefix, end):
    assert "flags owner" not in net.nft("list", "table", "inet", "gateway")
    assert net.ask("tcp", net.client, f"{prefix}1").startswith("server ")
    assert net.ask("tcp", net.client, f"{prefix}2").startswith("owner ")
    unowned.tell(f"learn {prefix}6 none user")
    unowned.tell("apply direct")
    assert net.ask("udp", net.client, f"{prefix}6").startswith("owner ")
    unowned.kill() if end == "kill" else unowned.tell("close")
    assert until(lambda: "gateway" not in net.nft("list", "tables"))
    assert net.ask("tcp", net.client, f"{prefix}2").startswith("server ")


def test_whether_the_kernel_knows_owners_is_asked(net):
    class Old(Library):
        def run(self, text, *, check=False):
            if "flags owner" in text:
                raise KernelError("nft", errno.EOPNOTSUPP, "Operation not supported")
            return super().run(text, check=check)

    class Broken(Library):
        def run(self, text, *, check=False):
            raise KernelError("nft", errno.EPERM)

    found = [net.gateway.call(lambda kind=kind: owners(kind())) for kind in (Library, Old, Broken)]
    assert found == [True, False, True]


def test_an_ownerless_table_that_was_left_is_replaced_and_undone(net, until):
    net.nft("add", "table", "inet", "gateway")
    owner = Owner(net.gateway)
    try:
        assert net.ask("tcp", net.client, "198.51.100.2").startswith("owner ")
    finally:
        owner.close()
    assert until(lambda: "gateway" not in net.nft("list", "tables"))
    net.nft("add", "table", "inet", "gateway")
    net.gateway.call(lambda: base_table.undo(base_table.UNDO))
    assert net.nft("list", "tables") == ""
