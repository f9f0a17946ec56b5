"""DNS over TLS and over HTTPS against unbound and dnsdist, asked by dig through us."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests import peers
from tests.interop.harness import LOOPBACK, LOOPBACKS, free_port, program
from tests.interop.proxies import NAME, certificates, sing_box
from tests.interop.test_dns import TEXT, UNBOUND, run, unbound

ENCRYPTED = """
server:
  interface: {at}@{tls}
  interface: {at}@{https}
  tls-port: {tls}
  https-port: {https}
  tls-service-key: "{files.key}"
  tls-service-pem: "{files.site}"
  http-query-buffer-size: 1m
  {more}
"""
DNSDIST = """
setLocal("127.0.0.1:{plain}")
newServer({{address="127.0.0.1:{behind}", checkName="a.test."}})
addTLSLocal("127.0.0.1:{tls}", "{files.site}", "{files.key}")
addDOHLocal("127.0.0.1:{https}", "{files.site}", "{files.key}", "/dns-query")
"""


@contextlib.contextmanager
def encrypted_unbound(files, at=LOOPBACK, more=""):
    """Ports of DoT and DoH."""
    plain, tls, https = free_port(), free_port(), free_port()
    config = UNBOUND.format(port=plain, text=" ".join(f'"{text}"' for text in TEXT))
    config += ENCRYPTED.format(at=at, tls=tls, https=https, files=files, more=more)
    command = [peers.path("unbound"), "-d", "-p", "-c", "CONFIG"]
    with program(*command, ready=https, config=config.encode(), host=at):
        yield {"tls": tls, "https": https}


@contextlib.contextmanager
def dnsdist(files):
    plain, behind, tls, https = free_port(), free_port(), free_port(), free_port()
    config = DNSDIST.format(plain=plain, behind=behind, tls=tls, https=https, files=files)
    command = [peers.path("dnsdist"), "--supervised", "--disable-syslog", "-C", "CONFIG"]
    with unbound(behind), program(*command, ready=https, config=config.encode()):
        yield {"tls": tls, "https": https}


def server(kind, port, files, at=LOOPBACK, tls=None, **fields):
    wanted = {"server_name": NAME, "certificate_path": str(files.ca), **(tls or {})}
    return {"type": kind, "tag": "up", "server": at, "server_port": port, "tls": wanted, **fields}


async def answers(ours):
    status, flags, found, text = await ours.dig("A.test", "A")
    assert (status, found[0][0], found[0][4]) == ("NOERROR", "A.test.", "192.0.2.1"), text
    assert "ra" in flags
    assert (await ours.dig("a.test", "AAAA"))[2][0][4] == "2001:db8::1"
    assert (await ours.dig("gone.test"))[0] == "NXDOMAIN"
    status, _, found, text = await ours.dig("big.test", "TXT", "+tcp")
    assert text.count("x" * 250) == len(TEXT)


WAYS = [
    pytest.param("tls", {}, id="tls"),
    pytest.param("https", {}, id="post"),
    pytest.param("https", {"method": "GET", "headers": {"X-Of": ["one", "two"]}}, id="get"),
]


@pytest.mark.peer("unbound")
@pytest.mark.peer("dig")
@pytest.mark.parametrize("at", LOOPBACKS)
@pytest.mark.parametrize(("kind", "fields"), WAYS)
def test_unbound(kind, fields, at):
    with certificates() as files, encrypted_unbound(files, at) as ports:
        run([server(kind, ports[kind], files, at, **fields)], answers)


@pytest.mark.peer("dnsdist")
@pytest.mark.peer("unbound")
@pytest.mark.peer("dig")
@pytest.mark.parametrize(
    "alpn", [None, pytest.param("http/1.1", marks=pytest.mark.slow), pytest.param("h2", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("kind", "fields"), WAYS)
def test_dnsdist(kind, fields, alpn):
    """HTTP/1.1 where ALPN chooses it."""
    if kind == "tls" and alpn:
        return
    with certificates() as files, dnsdist(files) as ports:
        run([server(kind, ports[kind], files, tls={"alpn": alpn} if alpn else {}, **fields)], answers)


@pytest.mark.slow
@pytest.mark.peer("unbound")
@pytest.mark.peer("dig")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_many_at_once_and_after_a_pause(kind):
    """The server closes an idle connection after 0.3 s; no query is lost with it."""

    async def body(ours):
        for _ in range(3):
            found = await asyncio.gather(*(ours.dig("a.test", type_) for type_ in ["A", "AAAA", "TXT", "MX"] * 4))
            assert {one[0] for one in found} == {"NOERROR"}
            await asyncio.sleep(1)

    with certificates() as files, encrypted_unbound(files, more="tcp-idle-timeout: 300") as ports:
        run([server(kind, ports[kind], files)], body, disable_cache=True)


@pytest.mark.peer("unbound")
@pytest.mark.peer("dig")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_a_wrong_server_is_not_asked(kind):
    async def refused(ours):
        assert (await ours.dig("a.test"))[0] == "SERVFAIL"

    with certificates() as files, certificates() as others, encrypted_unbound(files) as ports:
        run([server(kind, ports[kind], files, tls={"server_name": "other.test"})], refused)
        run([server(kind, ports[kind], others)], refused)
        run([server(kind, ports[kind], others, tls={"insecure": True})], answers)
        if kind == "https":
            run([server(kind, ports[kind], files, path="/elsewhere")], refused)
        run([server(kind, free_port(), files)], refused)


@pytest.mark.peer("unbound")
@pytest.mark.peer("sing-box")
@pytest.mark.peer("dig")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_by_name_and_through_a_proxy(kind):
    hosts = {"type": "hosts", "tag": "hosts", "path": "/dev/null", "predefined": {NAME: LOOPBACK}}
    with certificates() as files, encrypted_unbound(files) as ports:
        named = server(kind, ports[kind], files, NAME, {"server_name": ""}, domain_resolver="hosts")
        run([named, hosts], answers)
        users = [{"name": "one", "password": "secret"}]
        port, proxy = sing_box({"type": "trojan", "users": users, "tls": files.server()})
        with proxy:
            way = {"type": "trojan", "tag": "way", "server": LOOPBACK, "server_port": port, "password": "secret"}
            way["tls"] = files.client()
            run([server(kind, ports[kind], files, detour="way"), hosts], answers, outbounds=[way])
