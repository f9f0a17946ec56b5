"""VLESS inside TLS in bulk, see ``outbound``."""

from __future__ import annotations

from tests.bench import outbound
from tests.bench.measure import Bench
from tests.interop.proxies import certificates

USER = {"uuid": "8b2d0d7a-3f0e-4a44-9c0e-1f2f6a1f7a11"}


def run(bench: Bench) -> None:
    if outbound.wanted(bench, "tls"):
        with certificates() as files:
            client = {"type": "vless", **USER, "tls": files.client()}
            outbound.run(bench, outbound.Pair("tls", client, {"type": "vless", "users": [USER], "tls": files.server()}))
