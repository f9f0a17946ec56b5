"""DNS between dig (and raw sockets) on one side and dnsmasq and unbound on the other, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import dns.message
import msgspec
import pytest

from gateway import catalog
from gateway.config.fields import dec_hook
from gateway.dns.listener import Listener
from gateway.dns.options import decode_section
from gateway.dns.router import Router
from gateway.dns.server import dhcp, local, udp
from gateway.kernel.edge import Edge
from tests import peers
from tests.interop.harness import DEADLINE, build, exactly, free_port, program

TEXT = ["x" * 250] * 12
UNBOUND = """
server:
  directory: "."
  chroot: ""
  username: ""
  pidfile: ""
  interface: 127.0.0.1@{port}
  do-daemonize: no
  use-syslog: no
  local-zone: "test." static
  local-data: "test. 60 IN SOA ns.test. a.test. 1 2 3 4 30"
  local-data: "a.test. 60 IN A 192.0.2.1"
  local-data: "a.test. 60 IN AAAA 2001:db8::1"
  local-data: 'big.test. 60 IN TXT {text}'
remote-control:
  control-enable: no
"""


@contextlib.contextmanager
def dnsmasq(port):
    with program(
        peers.path("dnsmasq"), "--keep-in-foreground", f"--port={port}", "--listen-address=127.0.0.1,::1",
        "--bind-interfaces", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file", "--user=root",
        "--local=/test/", "--host-record=a.test,192.0.2.1,2001:db8::1,60", "--txt-record=big.test," + ",".join(TEXT),
        "--local-ttl=60", ready=port,
    ):  # fmt: skip
        yield


@contextlib.contextmanager
def unbound(port):
    config = UNBOUND.format(port=port, text=" ".join(f'"{text}"' for text in TEXT))
    with program(peers.path("unbound"), "-d", "-p", "-c", "CONFIG", ready=port, config=config.encode()):
        yield


PEERS = {"dnsmasq": dnsmasq, "unbound": unbound}


class Ours:
    """Router and listener in the loop that runs; ``port`` of both families."""

    def __init__(self, port):
        self.port = port

    async def dig(self, *words, at="127.0.0.1"):
        """Status, flags, answers."""
        command = [peers.path("dig"), f"@{at}", "-p", str(self.port), "+tries=2", "+timeout=20", "+nocookie", *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE)
        assert "unexpected source" not in done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line]
        if not any("status:" in line for line in lines):
            return "none", "", [], done.stdout
        status = next(line for line in lines if "status:" in line).split("status: ")[1].split(",")[0]
        flags = next(line for line in lines if "flags:" in line).split("flags: ")[1].split(";")[0]
        return status, flags, [line.split() for line in lines if not line.startswith(";")], done.stdout


def run(servers, body, *, leases=(), outbounds=(), **section):
    """``body`` with a resolver of ``servers``; ``outbounds`` by their tags, for detours."""

    async def main():
        edge = Edge(asyncio.get_running_loop())
        found = SimpleNamespace(servers=lambda interface="": leases)
        wiring = SimpleNamespace(
            edge=edge,
            mark=0,
            route=None,
            leases=found,
            outbounds={},
            rejections=None,
            fakes=None,
            directory=Path(),
        )
        for outbound in outbounds:
            wiring.outbounds[outbound["tag"]] = build(
                "outbound", outbound["tag"], {key: value for key, value in outbound.items() if key != "tag"}, wiring
            )
        built = {}
        for server in servers:
            rest = {key: value for key, value in server.items() if key not in ("type", "tag")}
            options = msgspec.convert(rest, catalog.options("dns", server["type"]), dec_hook=dec_hook)
            built[server["tag"]] = catalog.runtime("dns", server["type"])(server["tag"], options, wiring)
        router = wiring.resolver = Router(decode_section({"servers": servers, **section}), built, wiring)
        listener = Listener(router, wiring, free_port())
        await listener.start()
        try:
            await body(Ours(listener.bound[0][1].port))
        finally:
            await listener.close()
            await router.close()
            edge.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["udp", "tcp"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.peer(name)) for name in PEERS])
@pytest.mark.peer("dig")
def test_server(name, kind):
    async def body(ours):
        for at, more in (
            ("127.0.0.1", ()),
            ("::1", ()),
            ("127.0.0.9", ("+tcp",)),
            ("127.0.0.9", ()),
            ("::1", ["+tcp"]),
        ):
            status, flags, answers, text = await ours.dig("A.test", "A", *more, at=at)
            assert (status, answers[0][0], answers[0][4]) == ("NOERROR", "A.test.", "192.0.2.1"), text
            assert int(answers[0][1]) <= 60
            assert "ra" in flags
        status, _, answers, text = await ours.dig("a.test", "AAAA")
        assert answers[0][4] == "2001:db8::1", text
        assert (await ours.dig("gone.test"))[0] == "NXDOMAIN"
        for more in (("+ignore",), ("+ignore", "+noedns"), (), ("+tcp",)):
            status, flags, answers, text = await ours.dig("big.test", "TXT", *more)
            whole = "+ignore" not in more
            assert ("tc" in flags.split(), bool(answers)) == (not whole, whole), text
            if whole:
                assert text.count("x" * 250) == len(TEXT)

    port = free_port()
    with PEERS[name](port):
        run([{"type": kind, "tag": "up", "server": "127.0.0.1", "server_port": port}], body)


@pytest.mark.peer("dnsmasq")
@pytest.mark.peer("dig")
def test_servers_over_ipv6_and_by_name():
    async def body(ours):
        assert (await ours.dig("a.test"))[2][0][4] == "192.0.2.1"
        assert (await ours.dig("a.test", "AAAA"))[2][0][4] == "2001:db8::1"
        assert (await ours.dig("big.test", "TXT"))[2]

    port = free_port()
    rules = [{"query_type": "AAAA", "server": "tcp"}, {"domain": "ns.test", "server": "names"}]
    with dnsmasq(port):
        run(
            [
                {"type": "udp", "tag": "udp", "server": "::1", "server_port": port},
                {"type": "tcp", "tag": "tcp", "server": "ns.test", "server_port": port, "domain_resolver": "names"},
                {"type": "hosts", "tag": "names", "predefined": {"ns.test": "::1"}},
            ],
            body,
            rules=rules,
        )


@pytest.mark.peer("dnsmasq")
@pytest.mark.peer("dig")
def test_dhcp_follows_the_lease(monkeypatch):
    port = free_port()
    monkeypatch.setattr(dhcp, "PORT", port)
    leases = []

    async def body(ours):
        assert (await ours.dig("a.test"))[0] == "SERVFAIL"
        leases.append(ip_address("127.0.0.1"))
        assert (await ours.dig("a.test"))[2][0][4] == "192.0.2.1"

    with dnsmasq(port):
        run([{"type": "dhcp", "tag": "up"}], body, leases=leases)


@pytest.mark.peer("dnsmasq")
@pytest.mark.peer("dig")
def test_local_asks_what_the_host_asks(monkeypatch, tmp_path):
    port = free_port()
    monkeypatch.setattr(dhcp, "PORT", port)
    conf = tmp_path / "resolv.conf"
    conf.write_text("search example\n# nothing\nnameserver 127.0.0.1\n")
    monkeypatch.setattr(local, "RESOLV_CONF", conf)

    async def body(ours):
        assert (await ours.dig("a.test"))[2][0][4] == "192.0.2.1"
        assert (await ours.dig("localhost"))[2][0][4] == "127.0.0.1"

    with dnsmasq(port):
        run([], body)


@pytest.mark.peer("dig")
def test_hosts_and_rules(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# comment\n192.0.2.5 Five.test five  # five\n2001:db8::5 five.test\nnonsense here\n")
    server = {"type": "hosts", "tag": "hosts", "path": str(file), "predefined": {"Six.test": ["192.0.2.6"]}}
    rules = [
        {"query_type": "HTTPS", "action": "reject"},
        {"domain_suffix": "ads.test", "action": "reject", "method": "drop"},
    ]

    async def body(ours):
        assert (await ours.dig("five.test"))[2] == [["five.test.", "600", "IN", "A", "192.0.2.5"]]
        assert (await ours.dig("five.test", "AAAA"))[2][0][4] == "2001:db8::5"
        assert (await ours.dig("six.test"))[2][0][4] == "192.0.2.6"
        assert (await ours.dig("five.test", "MX"))[0] == "NOERROR"
        assert (await ours.dig("seven.test"))[0] == "NXDOMAIN"
        assert (await ours.dig("five.test", "TYPE65"))[0] == "REFUSED"
        assert (await ours.dig("x.ads.test", "+tries=1", "+timeout=1"))[0] == "none"

    run([server], body, rules=rules)


@pytest.mark.peer("dig")
def test_dead_server_is_servfail(monkeypatch):
    monkeypatch.setattr(udp, "WAITS", (0.05, 0.05))

    async def body(ours):
        assert (await ours.dig("a.test"))[0] == "SERVFAIL"

    run([{"type": "udp", "tag": "up", "server": "127.0.0.1", "server_port": free_port()}], body)


HOSTS = {"type": "hosts", "tag": "hosts", "predefined": {"a.test": "192.0.2.1"}}


def frame(ident, name="a.test"):
    query = dns.message.make_query(name, "A", id=ident).to_wire()
    return len(query).to_bytes(2, "big") + query


def test_tcp_in_pieces_in_a_row_and_half_closed():
    def client(port):
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in frame(1):
                sock.sendall(bytes([byte]))
            assert take(sock) == 1
            sock.sendall(b"".join(frame(ident) for ident in range(100, 200)))
            sock.shutdown(socket.SHUT_WR)
            assert {take(sock) for _ in range(100)} == set(range(100, 200))
            assert sock.recv(1) == b""
        for start in (b"\0", b"\0\1x", b"\xff\xff" + bytes(20), frame(1)[:9]):
            with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
                sock.sendall(start)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        # What is no query ends the connection, not the answers before it.
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
            sock.sendall(frame(1) + frame(2) + b"\0\1x" + frame(3))
            assert [take(sock), take(sock)] == [1, 2]
            assert sock.recv(1) == b""

    def take(sock):
        answer = exactly(sock, int.from_bytes(exactly(sock, 2), "big"))
        read = dns.message.from_wire(answer)
        assert read.answer[0][0].address == "192.0.2.1"
        return read.id

    run([HOSTS], lambda ours: asyncio.to_thread(client, ours.port))


def test_tcp_what_is_known_does_not_wait_for_a_server():
    """Among more questions than one client may have at work, to a server that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]

        def client(at):
            with socket.create_connection(("127.0.0.1", at), 3) as sock:
                for _ in range(2):  # the second time the cache has it
                    sock.sendall(frame(1))
                    exactly(sock, int.from_bytes(exactly(sock, 2), "big"))
                asked = b"".join(frame(100 + n, f"n{n}.far.test") for n in range(40))
                sock.sendall(frame(2) + asked)
                assert exactly(sock, int.from_bytes(exactly(sock, 2), "big"))[:2] == b"\0\2"

        servers = [HOSTS, {"type": "udp", "tag": "far", "server": "127.0.0.1", "server_port": port}]
        run(servers, lambda ours: asyncio.to_thread(client, ours.port), rules=[{"domain": "a.test", "server": "hosts"}],
            final="far")  # fmt: skip


def test_rubbish_is_survived():
    def client(port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port))
            sock.settimeout(2)
            query = frame(1)[2:]
            for size in range(len(query)):
                sock.send(query[:size])
                sock.send(query[:size] + os.urandom(30))
                sock.send(os.urandom(size))
            sock.send(b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                sock.send(frame(4242)[2:])
                with contextlib.suppress(TimeoutError):
                    for _ in range(500):
                        answer = sock.recv(65536)
                        if answer[:2] == (4242).to_bytes(2, "big") and answer[3] & 15 == 0 and answer[7]:
                            return
            raise AssertionError("no answer after rubbish")

    run([HOSTS], lambda ours: asyncio.to_thread(client, ours.port))
