"""What checks do and see: requests from hosts of the stage, and what the far ends tell of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.lab.forecast import ROUTED, CheckError, expect
from gateway.lab.scenario.home import Site
from gateway.lab.stage import Stage

NOBODY: dict[str, Any] = {"client": ["nobody"], "ttl": None}
"""In place of what a site saw, where no answer came."""


def page(address: str) -> str:
    """URL of the page at ``address``."""
    return f"http://[{address}]/" if ":" in address else f"http://{address}/"


def visit(stage: Stage, host: str, site: Site, name: str, family: int = 4, scheme: str = "http") -> dict[str, Any]:
    """``host`` resolves ``name`` and fetches its page; what ``site`` saw. Raises CheckError, also where the flow went
    otherwise than predicted after the name was known."""
    address, kind = (site.ipv6, "AAAA") if family == 6 else (site.ipv4, "A")
    answer = stage.lab.host(host).run(["dig", "+short", "+time=3", "+tries=2", name, kind]).out.strip()
    expect(answer == address, f"{name} is {answer or 'nothing'}, not {address}")
    port = 443 if scheme == "https" else 80
    told = stage.predict(address, source=host, port=port, shown=name)
    ca = ["--cacert", str(stage.lab.shared / "ca.pem")] if scheme == "https" else []
    seen = stage.fetch(host, f"{scheme}://{name}/", f"-{family}", *ca)
    expect(seen["site"] == site.host, f"{seen['site']} answered for {name}")
    told.held(stage.way(seen["client"][0]), seen["ttl"])
    return seen


def proxied(stage: Stage, site: Site, seen: dict[str, Any]) -> None:
    expect(stage.way(seen["client"][0]) == "proxy", f"{site.host} saw {seen['client'][0]}, not the proxy")


def http3(stage: Stage, host: str, name: str, address: str) -> dict[str, Any]:
    """What the site saw of one HTTP/3 request to ``name`` at ``address``."""
    words = ["python3", "-m", "gateway.lab.client.http3", f"https://{name}/", "--connect", address]
    result = stage.lab.host(host).run([*python(words), "--ca", str(stage.lab.shared / "ca.pem")])
    expect(result.ok, f"HTTP/3 to {address}: {result.err.strip()[-200:]}")
    found: dict[str, Any] = result.json()
    return found


def wan_addresses(stage: Stage) -> str:
    return str(stage.lab.host("router").run(["ip", "-br", "addr", "show", "dev", "wan"]).out)


def addresses6(stage: Stage, host: str) -> list[str]:
    """Global IPv6 addresses of a LAN host: its static one, and what it made of the router's advertisements."""
    rows = json.loads(stage.lab.host(host).run(["ip", "-j", "-6", "addr", "show", "scope", "global"]).out)
    return [info["local"] for row in rows for info in row.get("addr_info", ()) if "local" in info]


def kernel_only(stage: Stage, source: str, destination: str, seen: dict[str, Any], ttl: int = ROUTED) -> None:
    """The server saw the uplink's address with every hop used, and the router tracked one connection, the client's."""
    expect(seen["client"][0] == stage.wan4, f"the server saw {seen['client'][0]}, not {stage.wan4}")
    expect(seen["ttl"] == ttl, f"TTL {seen['ttl']}, not {ttl}: something between terminated the connection")
    rows = stage.conntrack("-p", "tcp", "--orig-dst", destination, "--dport", "80")
    ours = [row for row in rows if f"sport={seen['client'][1]} " in row or f"dport={seen['client'][1]} " in row]
    expect(len(ours) == 1, f"{len(ours)} entries tracked for the connection: {ours}")
    expect(f"src={source} " in ours[0], f"tracked: {ours[0]}")
    expect(f"dst={stage.wan4} " in ours[0].split(f"src={destination} ")[-1], f"tracked: {ours[0]}")


def python(words: list[str]) -> list[str]:
    return [sys.executable, *words[1:]]


def udp(stage: Stage, host: str, address: str, port: int = 7, timeout: float = 3.0) -> dict[str, Any] | None:
    """The site's answer to one datagram, None where there is none."""
    words = ["python3", "-m", "gateway.lab.client.udp", address, str(port), "--timeout", str(timeout)]
    out = stage.lab.host(host).run(python(words)).out.strip()
    answer: dict[str, Any] | None = json.loads(out.splitlines()[-1])["answer"] if out else None
    return answer


def tracked_mark(row: str) -> int:
    """The mark of a connection, from a line of conntrack(8)."""
    found = re.search(r" mark=(\d+)", row)
    return int(found[1]) if found else 0


def ping(stage: Stage, host: str, address: str, timeout: float = 3.0) -> bool:
    """Whether ``address`` answers an echo request. ``host`` must have echo sockets (icmp(7))."""
    six = ":" in address
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    request, reply = (128, 129) if six else (8, 0)
    with stage.lab.host(host).socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(timeout)
        with contextlib.suppress(OSError):
            sock.sendto(bytes((request, 0, 0, 0, 0, 0, 0, 1)) + b"is there anybody", (address, 0))
            data, source = sock.recvfrom(2000)
            return data[0] == reply and data[8:] == b"is there anybody" and source[0] == address
    return False


def icmp(stage: Stage, host: str, kind: str) -> int:
    """ICMP messages that ``host`` has had, over IPv4 and IPv6, as its kernel counts them; ``kind``: such as "Echos"."""

    def work() -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Icmp:"))
        rows = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
        return int(dict(zip(names, values, strict=True))[f"In{kind}"]) + int(rows[f"Icmp6In{kind}"])

    return stage.lab.host(host).call(work)


def answering(stage: Stage, host: str, address: str, ports: list[int]) -> list[int]:
    """TCP ports of ``address`` that accept or refuse a connection from ``host`` within two seconds. An ICMP error
    (no route, administratively prohibited) counts too: something answered."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    socks = {port: stage.lab.host(host).socket(family) for port in ports}
    try:
        for port, sock in socks.items():
            sock.setblocking(False)
            sock.connect_ex((address, port))
        deadline = time.monotonic() + 2.0
        found: set[int] = set()
        while time.monotonic() < deadline and len(found) < len(ports):
            found |= {port for port, sock in socks.items() if heard(sock)}
            time.sleep(0.05)
        return sorted(found)
    finally:
        for sock in socks.values():
            sock.close()


def heard(sock: socket.socket) -> bool:
    """Whether anything came back: an acceptance or a refusal."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    with contextlib.suppress(OSError):
        sock.getpeername()
        return True
    return False


@contextlib.contextmanager
def opened(stage: Stage, host: str, address: str, port: int, family: int) -> Iterator[socket.socket]:
    with stage.lab.host(host).socket(family) as sock:
        sock.settimeout(10)
        try:
            sock.connect((address, port))
        except OSError as error:
            raise CheckError(f"{host} to {address}:{port}: {error}") from None
        yield sock


def talk(sock: socket.socket, word: str) -> None:
    """Send a line and have it echoed."""
    try:
        sock.sendall(word.encode() + b"\n")
        answer = sock.recv(200)
    except OSError as error:
        raise CheckError(f"the connection broke: {error}") from None
    expect(answer == word.encode() + b"\n", f"the connection said {answer!r}")
