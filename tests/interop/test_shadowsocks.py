"""Shadowsocks against sing-box, Xray and shadowsocks-libev, both roles, TCP and UDP."""

from __future__ import annotations

import base64
import socket

import pytest

from tests import peers
from tests.interop.harness import (
    DEADLINE,
    LOOPBACK,
    LOOPBACKS,
    Gateway,
    check_datagrams,
    check_stream,
    echo,
    free_port,
    program,
    socks_connect,
)  # fmt: skip


def key(size, fill):
    return base64.b64encode(bytes((fill,)) * size).decode()


CLASSIC = ["aes-128-gcm", "aes-192-gcm", "aes-256-gcm", "chacha20-ietf-poly1305", "xchacha20-ietf-poly1305"]
MODERN = {"2022-blake3-aes-128-gcm": 16, "2022-blake3-aes-256-gcm": 32, "2022-blake3-chacha20-poly1305": 32}
PASSWORDS = {
    "none": "",
    **dict.fromkeys(CLASSIC, "correct horse"),
    **{name: key(size, 1) for name, size in MODERN.items()},
}
LIBEV = CLASSIC
XRAY = [name for name in PASSWORDS if name not in ("none", "aes-192-gcm")]
NAMED = [name for name in MODERN if "aes" in name]


def check(port, target, host=LOOPBACK, at=LOOPBACK):
    check_stream(socks_connect(port, host, target, at=at))
    check_datagrams(port, host, target, at=at)


def ours_out(method, port, password=None, at=LOOPBACK):
    """A SOCKS inbound of ours into our Shadowsocks outbound."""
    out = {"type": "shadowsocks", "server": at, "server_port": port, "method": method}
    return Gateway({"type": "socks"}, out | {"password": PASSWORDS[method] if password is None else password}, at)


def ours_in(method, at=LOOPBACK, **fields):
    return Gateway({"type": "shadowsocks", "method": method, "password": PASSWORDS[method], **fields}, host=at)


def sing_box(inbounds, outbounds, ready, at=LOOPBACK):
    config = {"log": {"level": "warn"}, "inbounds": inbounds, "outbounds": outbounds}
    config["dns"] = {"servers": [{"tag": "h", "type": "hosts", "predefined": {"echo.test": at}}]}
    config["route"] = {"default_domain_resolver": "h"}
    return program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=ready, host=at)


def sing_box_server(method, at=LOOPBACK, **fields):
    port = free_port()
    inbound = {"type": "shadowsocks", "listen": at, "listen_port": port, "method": method}
    inbound |= {"password": PASSWORDS[method], **fields}
    return port, sing_box([inbound], [{"type": "direct"}], port, at)


def sing_box_client(method, server, password=None, at=LOOPBACK):
    port = free_port()
    inbound = {"type": "socks", "listen": at, "listen_port": port}
    outbound = {"type": "shadowsocks", "server": at, "server_port": server, "method": method}
    outbound["password"] = PASSWORDS[method] if password is None else password
    return port, sing_box([inbound], [outbound], port, at)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("method", PASSWORDS)
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box(method, at):
    port, server = sing_box_server(method, at)
    with echo(at) as target, server, ours_out(method, port, at=at) as gateway:
        check(gateway.port, target, at, at)
        check(gateway.port, target, "echo.test", at)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("method", PASSWORDS)
@pytest.mark.parametrize("at", LOOPBACKS)
def test_in_from_sing_box(method, at):
    with echo(at) as target, ours_in(method, at) as gateway:
        port, client = sing_box_client(method, gateway.port, at=at)
        with client:
            check(port, target, at, at)
            check(port, target, "echo.test", at)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("method", [*NAMED, "aes-128-gcm", "chacha20-ietf-poly1305"])
def test_users_of_sing_box(method):
    users = [{"name": f"user{number}", "password": user_key(method, number)} for number in (2, 3, 4)]
    secret = f"{PASSWORDS[method]}:{user_key(method, 3)}" if method in NAMED else user_key(method, 3)
    port, server = sing_box_server(method, users=users, **({} if method in NAMED else {"password": ""}))
    with echo() as target, server, ours_out(method, port, secret) as gateway:
        check(gateway.port, target)
    with echo() as target, ours_in(method, users=users) as gateway:
        port, client = sing_box_client(method, gateway.port, secret)
        with client:
            check(port, target)
        assert {flow.user for flow in gateway.router.flows} == {"user3"}


def user_key(method, number):
    return key(MODERN[method], number) if method in MODERN else f"password {number}"


def xray(inbound, outbound, ready):
    config = {"log": {"loglevel": "warning"}, "inbounds": [inbound], "outbounds": [outbound]}
    return program(peers.path("xray"), "CONFIG", config=config, ready=ready)


FREEDOM = {"protocol": "freedom", "settings": {"finalRules": [{"action": "allow"}]}}


@pytest.mark.peer("xray")
@pytest.mark.parametrize("method", XRAY)
def test_out_to_xray(method):
    port = free_port()
    settings = {"method": method, "password": PASSWORDS[method], "network": "tcp,udp"}
    inbound = {"listen": "127.0.0.1", "port": port, "protocol": "shadowsocks", "settings": settings}
    with echo() as target, xray(inbound, FREEDOM, port), ours_out(method, port) as gateway:
        check(gateway.port, target)


@pytest.mark.peer("xray")
@pytest.mark.parametrize("method", XRAY)
def test_in_from_xray(method):
    port = free_port()
    with echo() as target, ours_in(method) as gateway:
        inbound = {
            "listen": "127.0.0.1",
            "port": port,
            "protocol": "socks",
            "settings": {"udp": True, "ip": "127.0.0.1"},
        }
        server = {"address": "127.0.0.1", "port": gateway.port, "method": method, "password": PASSWORDS[method]}
        with xray(inbound, {"protocol": "shadowsocks", "settings": {"servers": [server]}}, port):
            check(port, target)


@pytest.mark.peer("shadowsocks-libev")
@pytest.mark.parametrize("method", LIBEV)
def test_out_to_libev(method):
    port = free_port()
    command = ["-s", "127.0.0.1", "-p", port, "-k", PASSWORDS[method], "-m", method, "-u"]
    server = program(peers.path("ss-server"), *command, ready=port)
    with echo() as target, server, ours_out(method, port) as gateway:
        check(gateway.port, target)


@pytest.mark.peer("shadowsocks-libev")
@pytest.mark.parametrize("method", LIBEV)
def test_in_from_libev(method):
    port = free_port()
    with echo() as target, ours_in(method) as gateway:
        command = ["-s", "127.0.0.1", "-p", gateway.port, "-b", "127.0.0.1", "-l", port, "-k", PASSWORDS[method]]
        with program(peers.path("ss-local"), *command, "-m", method, "-u", ready=port):
            check(port, target)


@pytest.mark.parametrize("method", PASSWORDS)
def test_half_close_between_ours(method):
    with echo() as target, ours_in(method) as server, ours_out(method, server.port) as client:
        check_stream(socks_connect(client.port, "127.0.0.1", target), half_close=True)
        check_datagrams(client.port, "127.0.0.1", target)


@pytest.mark.parametrize("method", [name for name in PASSWORDS if name != "none"])
def test_a_stranger_is_told_nothing(method):
    """Whoever cannot authenticate gets neither bytes nor an early end."""
    with ours_in(method) as gateway, socket.create_connection(("127.0.0.1", gateway.port), DEADLINE) as sock:
        sock.sendall(bytes(200))
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(DEADLINE)
        assert sock.recv(1) == b""
        assert not gateway.router.flows


@pytest.mark.parametrize("method", ["aes-128-gcm", "2022-blake3-aes-128-gcm"])
def test_wrong_password_of_ours(method):
    wrong = key(16, 99) if method in MODERN else "wrong"
    with echo() as target, ours_in(method) as server, ours_out(method, server.port, wrong) as client:
        sock = socks_connect(client.port, "127.0.0.1", target)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        sock.close()
        assert not server.router.flows
