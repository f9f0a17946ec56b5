"""HTTP proxy against curl and sing-box."""

from __future__ import annotations

import base64
import os
import socket
import subprocess

import pytest

from tests import peers
from tests.interop.harness import (
    DEADLINE,
    LOOPBACKS,
    Gateway,
    check_stream,
    echo,
    exactly,
    free_port,
    program,
    socks_connect,
)
from tests.interop.proxies import certificates, sing_box
from tests.interop.web import bracket, curl, web

USERS = [{"username": "me", "password": "secret"}]


def connection(gateway):
    return socket.create_connection(("127.0.0.1", gateway.port), DEADLINE)


@pytest.mark.peer("curl")
@pytest.mark.parametrize("at", LOOPBACKS)
def test_connect_from_curl(at):
    with web() as (port, body), Gateway({"type": "http"}, host=at) as gateway:
        host = "127.0.0.1" if ":" in at else "localhost"
        assert curl(f"http://{host}:{port}/", "-p", "-x", f"http://{bracket(at)}:{gateway.port}") == body
        assert [str(flow.destination) for flow in gateway.router.flows] == [f"{host}:{port}"]


@pytest.mark.peer("curl")
def test_plain_requests_from_curl(tmp_path):
    """Three requests on one connection: one flow, one connection to the server; hop-by-hop fields stay here."""
    seen = []
    upload = os.urandom(700_000)
    (tmp_path / "upload").write_bytes(upload)
    with web(seen) as (port, body), Gateway({"type": "http", "users": USERS}) as gateway:
        proxy = ["-x", f"http://me:secret@127.0.0.1:{gateway.port}"]
        url = f"http://127.0.0.1:{port}"
        assert curl(*proxy, f"{url}/a?b=c", f"{url}/second") == body + body
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"], ["-H", "Expect: 100-continue"]):
            assert curl(*proxy, "--data-binary", f"@{tmp_path}/upload", *extra, f"{url}/up") == upload
        curl(*proxy, "-I", f"{url}/head")
    assert [entry[:2] for entry in seen[:2]] == [("GET", "/a?b=c"), ("GET", "/second")]
    assert seen[0][3] == seen[1][3]
    assert len(gateway.router.flows) == 6
    for _, _, fields, _ in seen:
        assert not {"proxy-authorization", "proxy-connection"} & {name.lower() for name in fields}
        assert fields["Host"] == f"127.0.0.1:{port}"


@pytest.mark.peer("curl")
def test_password_from_curl():
    with web() as (port, body), Gateway({"type": "http", "users": USERS}) as gateway:
        url = f"http://127.0.0.1:{port}/"
        for mode in ([], ["-p"]):
            assert curl(url, *mode, "-x", f"http://me:secret@127.0.0.1:{gateway.port}") == body
            for bad in ("me:wrong@", "you:secret@", ""):
                with pytest.raises(subprocess.CalledProcessError) as failed:
                    curl(
                        url, *mode, "-w", "%{http_code} %{http_connect}", "-x", f"http://{bad}127.0.0.1:{gateway.port}"
                    )
                assert b"407" in failed.value.stdout
        assert len(gateway.router.flows) == 2


@pytest.mark.peer("curl")
@pytest.mark.parametrize("mode", [[], ["-p"]], ids=["plain", "connect"])
def test_unreachable_target(mode):
    with Gateway({"type": "http"}) as gateway, pytest.raises(subprocess.CalledProcessError) as failed:
        curl(f"http://127.0.0.1:{free_port()}/", *mode, "-x", f"http://127.0.0.1:{gateway.port}")
    assert b"502" in failed.value.stderr


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("users", [[], USERS], ids=["open", "password"])
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box(users, at):
    port = free_port()
    inbound = {"type": "http", "listen": at, "listen_port": port, "users": users}
    config = {"log": {"level": "warn"}, "inbounds": [inbound], "outbounds": [{"type": "direct"}]}
    outbound = {
        "type": "http",
        "server": at,
        "server_port": port,
        "headers": {"X-Test": "1"},
        **(users or [{}])[0],
    }
    server = program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port, host=at)
    with echo(at) as target, server, Gateway({"type": "socks"}, outbound, at) as gateway:
        check_stream(socks_connect(gateway.port, at, target, at=at), half_close=True)


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("at", LOOPBACKS)
def test_out_to_sing_box_in_tls(at):
    with certificates() as files:
        port, server = sing_box({"type": "http", "users": USERS, "tls": files.server()}, at)
        outbound = {"type": "http", "server": at, "server_port": port, "tls": files.client(), **USERS[0]}
        with echo(at) as target, server, Gateway({"type": "socks"}, outbound, at) as gateway:
            check_stream(socks_connect(gateway.port, at, target, at=at))


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("users", [[], USERS], ids=["open", "password"])
@pytest.mark.parametrize("at", LOOPBACKS)
def test_in_from_sing_box(users, at):
    port = free_port()
    with echo(at) as target, Gateway({"type": "http", "users": users}, host=at) as gateway:
        inbound = {"type": "socks", "listen": at, "listen_port": port}
        outbound = {"type": "http", "server": at, "server_port": gateway.port, **(users or [{}])[0]}
        config = {"log": {"level": "warn"}, "inbounds": [inbound], "outbounds": [outbound]}
        with program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port, host=at):
            check_stream(socks_connect(port, at, target, at=at), half_close=True)


@pytest.mark.peer("tinyproxy")
def test_out_to_tinyproxy():
    port = free_port()
    config = f"Port {port}\nListen 127.0.0.1\nBasicAuth me secret\nMaxClients 10\nTimeout 60\n".encode()
    outbound = {"type": "http", "server": "127.0.0.1", "server_port": port}
    with echo() as target, program(peers.path("tinyproxy"), "-d", "-c", "CONFIG", config=config, ready=port):
        with Gateway({"type": "socks"}, outbound | USERS[0]) as gateway:
            check_stream(socks_connect(gateway.port, "127.0.0.1", target))
        wrong = Gateway({"type": "socks"}, outbound | {"username": "me", "password": "x"})
        with wrong as gateway, pytest.raises(AssertionError):
            socks_connect(gateway.port, "127.0.0.1", target)


def test_bytes_right_behind_connect_are_kept():
    with echo() as target, Gateway({"type": "http"}) as gateway, connection(gateway) as sock:
        sock.sendall(f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: x\r\n\r\nearly".encode())
        assert exactly(sock, 39 + 5) == b"HTTP/1.1 200 Connection established\r\n\r\nearly"


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", b"junk\r\n\r\n",
     b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a/ HTTP/1.1\r\nA: " + b"b" * 70_000],
)  # fmt: skip
def test_bad_requests(head):
    with Gateway({"type": "http"}) as gateway, socket.create_connection(("127.0.0.1", gateway.port), DEADLINE) as sock:
        sock.sendall(head)
        assert exactly(sock, 12) == b"HTTP/1.1 400"
        assert not gateway.router.flows


def test_password_is_compared_whole():
    token = base64.b64encode(b"me:secretx").decode()
    with Gateway({"type": "http", "users": USERS}) as gateway, connection(gateway) as sock:
        sock.sendall(f"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode())
        assert exactly(sock, 12) == b"HTTP/1.1 407"
