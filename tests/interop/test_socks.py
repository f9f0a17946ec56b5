"""SOCKS against curl, sing-box, Xray, dante and microsocks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time

import pytest

from tests import peers
from tests.interop.harness import (
    DEADLINE,
    LOOPBACK,
    LOOPBACKS,
    Gateway,
    ask,
    check_datagrams,
    check_stream,
    echo,
    encode,
    exactly,
    free_port,
    program,
    socks_connect,
)  # fmt: skip
from tests.interop.web import bracket, curl, web

USER = ("me", "secret")
USERS = [{"username": USER[0], "password": USER[1]}]
FREEDOM = {"protocol": "freedom", "settings": {"finalRules": [{"action": "allow"}]}}


def ours_out(port, at=LOOPBACK, **fields):
    return Gateway({"type": "socks"}, {"type": "socks", "server": at, "server_port": port, **fields}, at)


@pytest.mark.peer("curl")
@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize("at", LOOPBACKS)
def test_in_from_curl(scheme, at):
    with web() as (port, body), Gateway({"type": "socks"}, host=at) as gateway:
        host = "127.0.0.1" if at == "::1" or scheme in ("socks4", "socks5") else "localhost"
        assert curl(f"http://{host}:{port}/", "-x", f"{scheme}://{bracket(at)}:{gateway.port}") == body
        assert [str(flow.destination.host) for flow in gateway.router.flows] == [host]


@pytest.mark.peer("curl")
def test_password_from_curl():
    with web() as (port, body), Gateway({"type": "socks", "users": USERS}) as gateway:
        url = f"http://127.0.0.1:{port}/"
        assert curl(url, "-x", f"socks5://me:secret@127.0.0.1:{gateway.port}") == body
        assert gateway.router.flows[0].user == "me"
        for bad in ("me:wrong@", "you:secret@", ""):
            with pytest.raises(subprocess.CalledProcessError):
                curl(url, "-x", f"socks5://{bad}127.0.0.1:{gateway.port}")
        with pytest.raises(subprocess.CalledProcessError):
            curl(url, "-x", f"socks4://me@127.0.0.1:{gateway.port}")
        assert len(gateway.router.flows) == 1


@pytest.mark.peer("curl")
@pytest.mark.parametrize("scheme", ["socks4", "socks5"])
def test_refusal_reaches_curl(scheme):
    with Gateway({"type": "socks"}) as gateway, pytest.raises(subprocess.CalledProcessError) as failed:
        curl(f"http://127.0.0.1:{free_port()}/", "-x", f"{scheme}://127.0.0.1:{gateway.port}")
    assert failed.value.returncode == 97  # CURLE_PROXY: the proxy answered, with a refusal


def sing_box(inbound, outbound, at=LOOPBACK):
    port = free_port()
    inbound = {"listen": at, "listen_port": port, **inbound}
    config = {"log": {"level": "warn"}, "inbounds": [inbound], "outbounds": [outbound]}
    return port, program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port, host=at)


VERSIONS = ["4", "4a", "5", "5 with password"]


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box(version, at):
    users, fields = ([], {}) if "password" not in version else (USERS, USERS[0])
    port, server = sing_box({"type": "socks", "users": users}, {"type": "direct"}, at)
    host = at if version.startswith("5") else LOOPBACK
    with echo(host) as target, server, ours_out(port, at, version=version.split()[0], **fields) as gateway:
        check_stream(socks_connect(gateway.port, host, target, at=at), half_close=True)
        if version.startswith("5"):
            check_datagrams(gateway.port, host, target, at=at)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("at", LOOPBACKS)
def test_in_from_sing_box(version, at):
    users, fields = ([], {}) if "password" not in version else (USERS, USERS[0])
    host = at if version.startswith("5") else LOOPBACK
    with echo(host) as target, Gateway({"type": "socks", "users": users}, host=at) as gateway:
        outbound = {"type": "socks", "server": at, "server_port": gateway.port, "version": version.split()[0]}
        port, client = sing_box({"type": "socks"}, outbound | fields, at)
        with client:
            check_stream(socks_connect(port, host, target, at=at), half_close=True)
            if version.startswith("5"):
                check_datagrams(port, host, target, at=at)


@pytest.mark.peer("xray")
@pytest.mark.parametrize("version", ["4", "4a", "5"])
def test_out_to_xray(version):
    port = free_port()
    inbound = {"listen": "127.0.0.1", "port": port, "protocol": "socks", "settings": {"udp": True, "ip": "127.0.0.1"}}
    server = program(peers.path("xray"), "CONFIG", config={"inbounds": [inbound], "outbounds": [FREEDOM]}, ready=port)
    with echo() as target, server, ours_out(port, version=version) as gateway:
        check_stream(socks_connect(gateway.port, "127.0.0.1", target))
        if version == "5":
            check_datagrams(gateway.port, "127.0.0.1", target)


@pytest.mark.peer("xray")
def test_in_from_xray():
    port = free_port()
    with echo() as target, Gateway({"type": "socks"}) as gateway:
        inbound = {
            "listen": "127.0.0.1",
            "port": port,
            "protocol": "socks",
            "settings": {"udp": True, "ip": "127.0.0.1"},
        }
        outbound = {"protocol": "socks", "settings": {"servers": [{"address": "127.0.0.1", "port": gateway.port}]}}
        config = {"inbounds": [inbound], "outbounds": [outbound]}
        with program(peers.path("xray"), "CONFIG", config=config, ready=port):
            check_stream(socks_connect(port, "127.0.0.1", target))
            check_datagrams(port, "127.0.0.1", target)


DANTE = """
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: root
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
"""


@pytest.mark.peer("dante")
@pytest.mark.parametrize("version", ["4", "5"])
def test_out_to_dante(version):
    port = free_port()
    server = program(peers.path("danted"), "-f", "CONFIG", config=DANTE.format(port=port).encode(), ready=port)
    with echo() as target, server, ours_out(port, version=version) as gateway:
        check_stream(socks_connect(gateway.port, "127.0.0.1", target), half_close=True)
        if version == "5":
            check_datagrams(gateway.port, "127.0.0.1", target)


@pytest.mark.peer("microsocks")
def test_out_to_microsocks():
    port = free_port()
    server = program(peers.path("microsocks"), "-i", "127.0.0.1", "-p", port, "-u", USER[0], "-P", USER[1], ready=port)
    with echo() as target, server:
        with ours_out(port, username=USER[0], password=USER[1]) as gateway:
            check_stream(socks_connect(gateway.port, "127.0.0.1", target))
        with ours_out(port, username=USER[0], password="wrong") as gateway, pytest.raises(AssertionError):
            socks_connect(gateway.port, "127.0.0.1", target)


def test_association_ends_with_its_connection():
    """Datagrams are served while the TCP connection stands, fragments never; its end ends the session."""
    with echo() as target, Gateway({"type": "socks"}) as gateway:
        control = socket.create_connection(("127.0.0.1", gateway.port), DEADLINE)
        control.sendall(b"\x05\x01\x00")
        assert exactly(control, 2) == b"\x05\x00"
        control.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
        relay = ("127.0.0.1", int.from_bytes(exactly(control, 10)[8:], "big"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            ask(sock, relay, encode("127.0.0.1", target), os.urandom(900))
            before = len(gateway.router.flows)
            sock.sendto(b"\0\0\x01" + encode("127.0.0.1", target) + b"fragment", relay)
            ask(sock, relay, encode("127.0.0.1", target), os.urandom(900))
            assert len(gateway.router.flows) == before + 1
            control.close()
            end = time.monotonic() + DEADLINE
            while not gateway.router.closed and time.monotonic() < end:
                time.sleep(0.01)
            assert [tag for tag, _ in gateway.router.closed] == ["in"]
            sock.connect(relay)
            sock.send(b"anyone")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)


@pytest.mark.parametrize(
    "data",
    [b"\x05\x00", b"\x05\x01\x00\x05\x01\x00\x07", b"\x04\x01", b"\x00", b"\x05\x01\x00\x05\x02\x00\x01" + bytes(6)],
)
def test_bad_clients_end(data):
    with Gateway({"type": "socks"}) as gateway, socket.create_connection(("127.0.0.1", gateway.port), DEADLINE) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):
                pass
        assert not gateway.router.flows
