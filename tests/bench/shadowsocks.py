"""Shadowsocks in bulk, see ``outbound``."""

from __future__ import annotations

from tests.bench import outbound
from tests.bench.measure import Bench
from tests.interop.test_shadowsocks import PASSWORDS

METHODS = ("aes-128-gcm", "2022-blake3-aes-128-gcm")


def run(bench: Bench) -> None:
    for method in METHODS:
        both = {"type": "shadowsocks", "method": method, "password": PASSWORDS[method]}
        if outbound.wanted(bench, method):
            outbound.run(bench, outbound.Pair(method, both, both))
