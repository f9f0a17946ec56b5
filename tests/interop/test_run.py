"""``gateway run`` as a process, on a pure sing-box file: real clients in front, real servers behind, rules between."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import peers
from tests.instances import instance
from tests.interop.harness import (
    LOOPBACK,
    ask,
    association,
    check_datagrams,
    check_stream,
    echo,
    encode,
    free_port,
    program,
    socks_connect,
)
from tests.interop.proxies import certificates, xray
from tests.interop.proxies import sing_box as proxy
from tests.interop.test_shadowsocks import PASSWORDS, sing_box

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def gateway(port, outbounds, rules, final, *words):
    """Our own process with a mixed inbound on ``port``; ``words`` go on after ``run``."""
    config = {
        "log": {"level": "info"},
        "inbounds": [{"type": "mixed", "tag": "in", "listen": "127.0.0.1", "listen_port": port}],
        "outbounds": outbounds,
        "route": {"rules": rules, "final": final},
    }
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "gateway", "run", "-c", "CONFIG"]
    with instance(port) as name, program(*command, *words, "--instance", name, config=config, ready=port) as process:
        yield process


def shadowsocks(method, port):
    return {
        "type": "shadowsocks",
        "tag": "proxy",
        "server": "127.0.0.1",
        "server_port": port,
        "method": method,
        "password": PASSWORDS[method],
    }


DIRECT = {"type": "direct", "tag": "direct"}
BLOCK = {"type": "block", "tag": "block"}


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("method", ["aes-128-gcm", "2022-blake3-aes-128-gcm"])
def test_proxied_and_direct_through_the_real_relay(method):
    """One destination goes through sing-box's Shadowsocks server, another direct; TCP and UDP."""
    server, port = free_port(), free_port()
    inbound = {"type": "shadowsocks", "listen": "127.0.0.1", "listen_port": server}
    inbound |= {"method": method, "password": PASSWORDS[method]}
    with echo() as near, echo() as far, sing_box([inbound], [DIRECT], server):
        rules = [{"port": far, "outbound": "proxy"}]
        with gateway(port, [DIRECT, shadowsocks(method, server)], rules, "direct"):
            for target in (near, far):
                check_stream(socks_connect(port, "127.0.0.1", target), half_close=target == near)
                check_datagrams(port, "127.0.0.1", target)
            # With the server gone only the proxied destination is lost: it did go through it.
        with gateway(port, [DIRECT, shadowsocks(method, free_port())], rules, "direct"):
            check_stream(socks_connect(port, "127.0.0.1", near))
            with pytest.raises((AssertionError, OSError)):
                check_stream(socks_connect(port, "127.0.0.1", far))


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("kind", ["trojan", "vless", "vless in trojan"])
def test_in_tls_through_the_real_relay(kind):
    """The path of the authority's file starts where -D says. Of two protocols the inner one is in TLS too."""
    port = free_port()
    secret = {"trojan": {"password": "secret"}, "vless": {"uuid": "a house"}}
    with certificates() as files, contextlib.ExitStack() as stack, echo() as near, echo() as far:
        outbounds = [DIRECT]
        for number, name in enumerate(kind.split(" in ")):
            inbound = {"type": name, "tls": files.server(), "users": [{"name": "me", **secret[name]}]}
            server, theirs = proxy(inbound)
            stack.enter_context(theirs)
            outbound = {"type": name, "tag": f"proxy{number}", "server": LOOPBACK, "server_port": server}
            tls = files.client(certificate_path="ca.pem")
            outbounds.append(outbound | secret[name] | {"tls": tls})
        if kind == "vless in trojan":
            outbounds[1]["detour"] = "proxy1"
        rules = [{"port": far, "outbound": "proxy0"}]
        stack.enter_context(gateway(port, outbounds, rules, "direct", "-D", files.ca.parent))
        check_stream(socks_connect(port, LOOPBACK, near), half_close=True)
        for _ in range(3):
            check_stream(socks_connect(port, LOOPBACK, far))
        check_datagrams(port, LOOPBACK, far)


@pytest.mark.slow
@pytest.mark.peer("xray")
def test_half_close_in_tls_through_the_real_relay():
    """Each end of a TLS connection is closed by itself (close_notify)."""
    port = free_port()
    with certificates() as files, echo() as near, echo() as far:
        settings = {"protocol": "trojan", "settings": {"clients": [{"password": "secret"}]}}
        server, theirs = xray(settings | {"streamSettings": files.xray()})
        outbound = {"type": "trojan", "tag": "proxy", "server": LOOPBACK, "server_port": server, "password": "secret"}
        outbounds = [DIRECT, outbound | {"tls": files.client()}]
        with theirs, gateway(port, outbounds, [{"port": far, "outbound": "proxy"}], "direct"):
            for target in (near, far, far, far):
                check_stream(socks_connect(port, LOOPBACK, target), half_close=True)


def test_a_certificate_that_is_not_there_stops_the_start():
    tls = {"enabled": True, "certificate_path": "none.pem"}
    outbound = {"type": "trojan", "tag": "proxy", "server": LOOPBACK, "server_port": 1, "password": "x", "tls": tls}
    said = r"outbounds\[1\].tls.certificate_path: .*none.pem: No such file"
    with pytest.raises(AssertionError, match=said), gateway(free_port(), [DIRECT, outbound], [], "direct"):
        pass


@pytest.mark.peer("ss-server")
def test_proxied_through_shadowsocks_libev():
    server, port = free_port(), free_port()
    command = [peers.path("ss-server"), "-s", "127.0.0.1", "-p", str(server), "-m", "aes-256-gcm", "-u"]
    with (
        echo() as far,
        program(*command, "-k", PASSWORDS["aes-256-gcm"], ready=server),
        gateway(port, [shadowsocks("aes-256-gcm", server)], [], "proxy"),
    ):
        check_stream(socks_connect(port, "127.0.0.1", far))
        check_datagrams(port, "127.0.0.1", far)


@pytest.mark.peer("sing-box")
def test_datagrams_go_on_after_the_socks_server_was_gone():
    """One client socket all the time; its association at the server ends, and the next datagram makes a new one."""
    server, port = free_port(), free_port()
    inbound = {"type": "socks", "listen": LOOPBACK, "listen_port": server}
    outbound = {"type": "socks", "tag": "proxy", "server": LOOPBACK, "server_port": server}
    with (
        echo() as far,
        gateway(port, [outbound], [], "proxy"),
        association(port) as relay,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(0.5)
        for text in (b"before", b"after"):
            with sing_box([inbound], [DIRECT], server):
                ask(sock, relay, encode(LOOPBACK, far), text)


@pytest.mark.peer("curl")
def test_rules_by_sniffed_and_asked_names(tmp_path):
    """A name that the client only says inside its bytes (Host) decides, and one that it asks the proxy for."""
    (tmp_path / "page").write_text("hello")
    web, port = free_port(), free_port()
    rules = [
        {"action": "sniff"},
        {"domain_suffix": "blocked.example", "outbound": "block"},
        {"domain": "rejected.example", "action": "reject"},
    ]
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(web)]
    with program(*serve, ready=web), gateway(port, [DIRECT, BLOCK], rules, "direct"):

        def curl(*words):
            command = ["curl", "-s", "-m", "20", "-x", f"socks5://127.0.0.1:{port}", *words]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        url = f"http://127.0.0.1:{web}/page"
        assert curl(url).stdout == "hello"
        for host in ("www.blocked.example", "rejected.example"):
            refused = curl("-H", f"Host: {host}", url)
            assert refused.returncode != 0
            assert refused.stdout == ""
        asked = curl("--socks5-hostname", f"127.0.0.1:{port}", f"http://www.blocked.example:{web}/page")
        assert asked.returncode != 0
        assert curl("-H", "Host: allowed.example", url).stdout == "hello"
