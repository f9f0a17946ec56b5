"""Trojan inside TLS in bulk, see ``outbound``."""

from __future__ import annotations

from tests.bench import outbound
from tests.bench.measure import Bench
from tests.interop.proxies import certificates

USER = {"password": "correct horse"}


def run(bench: Bench) -> None:
    if outbound.wanted(bench, "tls"):
        with certificates() as files:
            client = {"type": "trojan", **USER, "tls": files.client()}
            outbound.run(
                bench, outbound.Pair("tls", client, {"type": "trojan", "users": [USER], "tls": files.server()})
            )
