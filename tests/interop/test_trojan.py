"""Trojan against sing-box and Xray as servers, TCP and UDP, inside TLS and without."""

from __future__ import annotations

import socket

import pytest

from tests.interop.harness import LOOPBACK, LOOPBACKS, Gateway, check_stream, echo, encode, exactly, socks_connect
from tests.interop.proxies import NAME, certificates, check, check_silence, sing_box, xray

PASSWORD = "correct horse"


def out(port, tls=None, at=LOOPBACK, password=PASSWORD, **fields):
    """A SOCKS inbound of ours into our Trojan outbound."""
    outbound = {"type": "trojan", "server": at, "server_port": port, "password": password, **fields}
    return Gateway({"type": "socks"}, outbound | ({"tls": tls} if tls else {}), at)


def theirs(tls=None, at=LOOPBACK):
    inbound = {"type": "trojan", "users": [{"name": "one", "password": PASSWORD}]}
    return sing_box(inbound | ({"tls": tls} if tls else {}), at)


def xrays(stream, at=LOOPBACK):
    settings = {"clients": [{"password": "another"}, {"password": PASSWORD}]}
    return xray({"protocol": "trojan", "settings": settings, "streamSettings": stream}, at)


def refused(gateway, target):
    """A connection that fails before the inbound answers it; the error that the outbound raised."""
    with socket.create_connection((LOOPBACK, gateway.port), 30) as sock:
        sock.sendall(b"\x05\x01\x00")
        exactly(sock, 2)
        sock.sendall(b"\x05\x01\x00" + encode(LOOPBACK, target))
        assert exactly(sock, 4)[1] != 0
    return gateway.router.errors[-1]


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box(at):
    with certificates() as files:
        port, server = theirs(files.server(), at)
        with echo(at) as target, server, out(port, files.client(), at) as gateway:
            check(gateway.port, target, at, at)
            check(gateway.port, target, "echo.test", at)


@pytest.mark.peer("sing-box")
def test_out_to_sing_box_without_tls():
    port, server = theirs()
    with echo() as target, server, out(port) as gateway:
        check(gateway.port, target)


@pytest.mark.peer("xray")
@pytest.mark.parametrize("at", [LOOPBACKS[0], pytest.param("::1", id="v6", marks=pytest.mark.slow)])
def test_out_to_xray(at):
    with certificates() as files:
        port, server = xrays(files.xray(), at)
        with echo(at) as target, server, out(port, files.client(), at) as gateway:
            check(gateway.port, target, at, at)
            check(gateway.port, target, "echo.test", at)
            check_stream(socks_connect(gateway.port, at, target, at=at), half_close=True)


@pytest.mark.parametrize("peer", [pytest.param(name, marks=pytest.mark.peer(name)) for name in ("sing-box", "xray")])
def test_wrong_password(peer):
    with certificates() as files:
        port, server = theirs(files.server()) if peer == "sing-box" else xrays(files.xray())
        with echo() as target, server, out(port, files.client(), password="wrong") as gateway:
            check_silence(gateway.port, target)


@pytest.mark.peer("sing-box")
def test_certificates_that_are_not_the_right_ones():
    with certificates() as files, certificates() as others, certificates(stale=True) as stale:
        port, server = theirs(files.server())
        with echo() as target, server:
            with out(port, files.client(server_name="other.test")) as gateway:
                assert str(refused(gateway, target)) == ('TLS with other.test: its certificate is not for "other.test"')
                assert refused(gateway, target).stage == "tls"
            with out(port, files.client(server_name="other.test", disable_sni=True)) as gateway:
                assert 'not for "other.test"' in str(refused(gateway, target))
            with out(port, others.client()) as gateway:
                assert "an authority that is not known here" in str(refused(gateway, target))
            with out(port, {"enabled": True, "server_name": NAME}) as gateway:
                assert "not known here" in str(refused(gateway, target))
            for fields in ({"insecure": True}, {"disable_sni": True}, {"server_name": LOOPBACK}, {"server_name": ""}):
                with out(port, files.client(**fields)) as gateway:
                    check_stream(socks_connect(gateway.port, LOOPBACK, target))
        port, server = theirs(stale.server())
        with echo() as target, server, out(port, stale.client()) as gateway:
            assert "has expired" in str(refused(gateway, target))
        port, server = theirs()
        with echo() as target, server, out(port, files.client()) as gateway:
            assert refused(gateway, target).stage == "tls"
