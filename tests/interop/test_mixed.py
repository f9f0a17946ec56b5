"""One port for SOCKS and HTTP, with curl's every scheme."""

from __future__ import annotations

import subprocess

import pytest

from tests.interop.harness import LOOPBACKS, Gateway, check_datagrams, check_stream, echo, socks_connect
from tests.interop.web import bracket, curl, web

SCHEMES = ["http", "socks4", "socks4a", "socks5", "socks5h"]


@pytest.mark.peer("curl")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("at", LOOPBACKS)
def test_in_from_curl(scheme, at):
    with web() as (port, body), Gateway({"type": "mixed"}, host=at) as gateway:
        for mode in ([], ["-p"]) if scheme == "http" else ([],):
            assert curl(f"http://127.0.0.1:{port}/", *mode, "-x", f"{scheme}://{bracket(at)}:{gateway.port}") == body
        assert {flow.inbound_type for flow in gateway.router.flows} == {"mixed"}


@pytest.mark.peer("curl")
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_password_from_curl(scheme):
    users = [{"username": "me", "password": "secret"}]
    with web() as (port, body), Gateway({"type": "mixed", "users": users}) as gateway:
        url = f"http://127.0.0.1:{port}/"
        assert curl(url, "-x", f"{scheme}://me:secret@127.0.0.1:{gateway.port}") == body
        with pytest.raises(subprocess.CalledProcessError):
            curl(url, "-x", f"{scheme}://me:wrong@127.0.0.1:{gateway.port}")


@pytest.mark.parametrize("at", LOOPBACKS)
def test_streams_and_datagrams(at):
    with echo(at) as target, Gateway({"type": "mixed"}, host=at) as gateway:
        check_stream(socks_connect(gateway.port, at, target, at=at), half_close=True)
        check_datagrams(gateway.port, at, target, at=at)
