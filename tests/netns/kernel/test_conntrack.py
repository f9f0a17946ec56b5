"""Entries by mark and by tuple, against the kernel; the reaper, by its pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.core.address import Address
from gateway.kernel import conntrack, mark
from gateway.kernel.ended import Ended
from gateway.kernel.reaper import Reaper

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[3]
SITES = ("198.51.100.1", "2001:db8:2::1")


@pytest.fixture
def tracked(net):
    """Marks every new flow of the client with the userspace class."""
    net.nft(
        "-f",
        "-",
        stdin=b"""
        table inet marked {
            chain before {
                type filter hook prerouting priority mangle;
                iifname "lan0" ct state new ct mark set 0x01000042
            }
        }""",
    )
    yield
    net.nft("delete", "table", "inet", "marked")


def of(net, sock):
    host, port = sock.getsockname()[:2]
    wanted = Address.of(host, port)
    return [entry for entry in net.gateway.call(conntrack.dump) if entry.source == wanted]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_dump_and_delete_by_tuple(net, tracked, kind, site):
    with net.open(kind, net.client, site) as sock:
        sock.send(b"?")
        sock.recv(100)
        (entry,) = of(net, sock)
        assert entry.destination == Address.of(site, 80) == entry.reply_source
        assert entry.reply_destination == entry.source
        assert entry.mark == 0x01000042
        assert entry.protocol == conntrack.PROTOCOLS[kind]
        delete = lambda: conntrack.delete_flow(kind, entry.source, entry.destination)  # noqa: E731
        assert net.gateway.call(delete) is True
        assert net.gateway.call(delete) is False
        assert of(net, sock) == []


@pytest.mark.parametrize("site", SITES)
def test_delete_by_mark_spares_the_others(net, tracked, site):
    with net.open("udp", net.client, site) as sock:
        sock.send(b"?")
        sock.recv(100)
        net.gateway.call(lambda: conntrack.delete_marked(mark.DIRECT, mark.CLASS))
        assert len(of(net, sock)) == 1
        net.gateway.call(conntrack.delete_userspace)
        assert of(net, sock) == []


def test_families_do_not_mix(net):
    with pytest.raises(ValueError, match="two families"):
        conntrack.delete_flow("udp", Address.of("192.0.2.1", 1), Address.of("2001:db8::1", 1))


def test_the_reaper_outlives_signals_and_holds_nothing(net, tracked):
    reaper = net.gateway.call(Reaper)
    with net.open("udp", net.client, SITES[0]) as sock:
        sock.send(b"?")
        sock.recv(100)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(reaper.pid, number)
        links = [os.readlink(f"/proc/{reaper.pid}/fd/{name}") for name in os.listdir(f"/proc/{reaper.pid}/fd")]
        assert sum(link.startswith("socket:") for link in links) == 1
        assert len(of(net, sock)) == 1
        reaper.close()
        reaper.close()
        assert of(net, sock) == []


def test_ends_of_one_mark_are_heard(net, tracked, until):
    """And no others, of which the kernel wakes nobody."""
    heard = []
    ended = net.gateway.call(lambda: Ended(mark.USER, mark.CLASS, heard.append))
    try:
        for number, site in enumerate(SITES):
            with net.open("udp", net.client, site) as sock, net.open("udp", net.gateway, site) as other:
                for one in (sock, other):
                    one.send(b"?")
                    one.recv(100)
                source = Address.of(*sock.getsockname()[:2])
            net.gateway.run(["conntrack", "-F"])
            assert until(lambda number=number: ended.read() or len(heard) > number, 5)
            assert [found.entry.source for found in heard[number:]] == [source]
            assert heard[number].entry.mark == 0x01000042
        assert ended.lost == 0
        other = net.gateway.call(lambda: Ended(mark.DIRECT, mark.CLASS, heard.append))
        with net.open("udp", net.client, SITES[0]) as sock:
            sock.send(b"?")
            sock.recv(100)
        net.gateway.run(["conntrack", "-F"])
        assert until(lambda: ended.read() or len(heard) == 3, 5)
        other.read()
        assert len(heard) == 3
        other.close()
    finally:
        ended.close()


DYING = """
import os, sys
from gateway.kernel.reaper import Reaper
reaper = Reaper()
os.close(reaper._write)
print(reaper.pid, flush=True)
sys.stdin.read()
"""


def test_the_reaper_waits_for_the_end_of_a_slow_death(net, tracked, until):
    """The pipe closes long before the process is gone, as where it has to detach programs on a busy machine."""
    command = ["ip", "netns", "exec", net.gateway.namespace, sys.executable, "-c", DYING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as dying:
        assert dying.stdin is not None
        assert dying.stdout is not None
        assert int(dying.stdout.readline()) > 0
        time.sleep(0.5)
        with net.open("udp", net.client, SITES[0]) as sock:
            sock.send(b"?")
            sock.recv(100)
            assert len(of(net, sock)) == 1
            dying.stdin.close()
            dying.wait(10)
            assert until(lambda: of(net, sock) == [], 5)
