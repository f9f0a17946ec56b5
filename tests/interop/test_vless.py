"""VLESS against sing-box and Xray as servers, TCP and UDP in each packet encoding, inside TLS and without."""

from __future__ import annotations

import pytest

from tests.interop.harness import (
    LOOPBACK,
    LOOPBACKS,
    Gateway,
    check_datagrams,
    check_stream,
    echo,
    socks_connect,
)  # fmt: skip
from tests.interop.proxies import certificates, check, check_silence, sing_box, xray

UUID = "8b2d0d7a-3f0e-4a44-9c0e-1f2f6a1f7a11"
ENCODINGS = [None, "", "xudp", "packetaddr"]


def out(port, tls=None, at=LOOPBACK, uuid=UUID, encoding=None, **fields):
    """A SOCKS inbound of ours into our VLESS outbound."""
    outbound = {"type": "vless", "server": at, "server_port": port, "uuid": uuid, **fields}
    outbound |= ({"tls": tls} if tls else {}) | ({} if encoding is None else {"packet_encoding": encoding})
    return Gateway({"type": "socks"}, outbound, at)


def theirs(tls=None, at=LOOPBACK, uuid=UUID):
    inbound = {"type": "vless", "users": [{"name": "one", "uuid": uuid}]}
    return sing_box(inbound | ({"tls": tls} if tls else {}), at)


def xrays(stream, at=LOOPBACK, uuid=UUID):
    settings = {"clients": [{"id": uuid}], "decryption": "none"}
    return xray({"protocol": "vless", "settings": settings, "streamSettings": stream}, at)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box(at):
    with certificates() as files:
        port, server = theirs(files.server(), at)
        with echo(at) as target, server:
            for encoding in ENCODINGS:
                with out(port, files.client(), at, encoding=encoding) as gateway:
                    check_datagrams(gateway.port, at, target, at=at)
                    if encoding != "packetaddr":
                        check_datagrams(gateway.port, "echo.test", target, at=at)
            with out(port, files.client(), at) as gateway:
                check_stream(socks_connect(gateway.port, at, target, at=at))
                check_stream(socks_connect(gateway.port, "echo.test", target, at=at))


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
        with echo(at) as target, server:
            for encoding in (None, ""):
                with out(port, files.client(), at, encoding=encoding) as gateway:
                    check(gateway.port, target, at, at)
                    check(gateway.port, target, "echo.test", at)


@pytest.mark.peer("sing-box")
def test_several_peers_of_one_session():
    """Each encoding brings every datagram to the peer it was meant for."""
    port, server = theirs()
    with echo() as one, echo() as other, server:
        for encoding in ENCODINGS:
            with out(port, encoding=encoding) as gateway:
                check_datagrams(gateway.port, LOOPBACK, one, also=other)


@pytest.mark.parametrize("peer", [pytest.param(name, marks=pytest.mark.peer(name)) for name in ("sing-box", "xray")])
def test_text_that_is_no_uuid(peer):
    port, server = theirs(uuid="my house") if peer == "sing-box" else xrays({"network": "tcp"}, uuid="my house")
    with echo() as target, server, out(port, uuid="my house") as gateway:
        check_stream(socks_connect(gateway.port, LOOPBACK, target))


@pytest.mark.parametrize("peer", [pytest.param(name, marks=pytest.mark.peer(name)) for name in ("sing-box", "xray")])
def test_wrong_uuid(peer):
    port, server = theirs() if peer == "sing-box" else xrays({"network": "tcp"})
    with echo() as target, server, out(port, uuid=UUID.replace("8", "9")) as gateway:
        check_silence(gateway.port, target)
