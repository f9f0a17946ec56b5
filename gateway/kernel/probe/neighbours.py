"""Who else has rules here, known by the names of their tables, chains and interfaces (docs/neighbours.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.kernel.probe.finding import Finding
from gateway.kernel.probe.ruleset import Ruleset, named

NEIGHBOURS = {
    "Docker": ("DOCKER", "docker"),
    "libvirt": ("LIBVIRT_", "virbr"),
    "firewalld": ("", ""),
    "fw4": ("", ""),
    "mwan3": ("mwan3_", ""),
    "pbr": ("pbr_", ""),
    "Tailscale": ("ts-", "tailscale"),
    "ufw": ("ufw-", ""),
}
"""How the names of their chains and of their interfaces begin."""
TABLES = {"libvirt_network": "libvirt", "firewalld": "firewalld", "fw4": "fw4"}


def beside(ruleset: Ruleset) -> Iterator[Finding]:
    found = present(ruleset, (name for _, name in socket.if_nameindex()))
    detail = ", ".join(f"{name} ({sign})" for name, sign in found.items())
    yield Finding("neighbours", True, detail and f"{detail}: docs/neighbours.md", needed=False)


def legacy() -> Iterator[Finding]:
    """Rules of the older iptables, which nft does not list."""
    found = [word for name in ("ip", "ip6") for word in _words(Path(f"/proc/net/{name}_tables_names"))]
    tables = ", ".join(dict.fromkeys(found))
    detail = f"tables {tables}: what they drop or mark is not seen here" if tables else ""
    yield Finding("iptables-legacy", not tables, detail, needed=False)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def present(ruleset: Ruleset, interfaces: Iterable[str]) -> dict[str, str]:
    """Those that are here, with what betrays them."""
    found: dict[str, str] = {}
    for family, table in ruleset.tables:
        if table in TABLES:
            found.setdefault(TABLES[table], f"table {family} {table}")
    for place in ruleset.chains:
        for name, (chain, _) in NEIGHBOURS.items():
            if chain and place[2].startswith(chain):
                found.setdefault(name, f"chain {named(place)}")
    for interface in interfaces:
        for name, (_, prefix) in NEIGHBOURS.items():
            if prefix and interface.startswith(prefix):
                found.setdefault(name, f"interface {interface}")
    return found
