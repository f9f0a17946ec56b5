"""What the demo shows, one function a check: each drives real clients and asks the others what they saw.

A check never asks the gateway. It returns one line for a person, or raises CheckError.
"""

from __future__ import annotations

import contextlib
import json
import pwd
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gateway.lab.process import User
from gateway.lab.stage import FORWARDED, USER, CheckError, Stage, expect, poll

Check = Callable[[Stage], str]


def late_uplink(stage: Stage) -> str:
    """The gateway runs before its uplink exists."""
    expect(stage.gateway is not None, "no gateway runs")
    expect(not stage.lease(), "a lease before there is a cable")
    stage.plug()
    stage.wan4 = poll(stage.lease, "no lease after the interface appeared")
    poll(lambda: stage.wan4 in wan_addresses(stage), f"{stage.wan4} is not on the uplink")
    return f"the cable came after the start; leased {stage.wan4}"


def lease(stage: Stage) -> str:
    """The DHCP server's own lease file names us, and the kernel has the address with the lease's lifetime."""
    stage.wan4 = poll(stage.lease, "the DHCP server's lease file does not name us")
    poll(lambda: stage.wan4 in wan_addresses(stage), f"{stage.wan4} is not on the uplink")
    rows = json.loads(stage.lab.host("router").run(["ip", "-j", "-4", "addr", "show", "dev", "wan"]).out)
    found = [info for row in rows for info in row.get("addr_info", ()) if info["local"] == stage.wan4]
    expect(found, f"{stage.wan4} is not on the uplink")
    expect(0 < found[0]["valid_life_time"] <= 120, f"lifetime {found[0]['valid_life_time']} s, the lease has 120 s")
    route = stage.lab.host("router").run(["ip", "-4", "route", "show", "default"]).out
    expect(f"via {stage.home.isp4} dev wan" in route, f"default route: {route or 'none'}")
    return f"{stage.wan4} from {stage.home.isp4}, {found[0]['valid_life_time']} s left"


def renew(stage: Stage) -> str:
    """The server acknowledges again at T1 (5 s here), the address never leaves."""
    first = poll(stage.acks, "the DHCP server has acknowledged nothing")
    poll(lambda: stage.acks() > first, "no renewal")
    # The server rewrites its lease file: for a moment it may name nobody.
    poll(lambda: stage.lease() == stage.wan4, "another address after the renewal", 5)
    return f"acknowledged {stage.acks()} times, {stage.wan4} stayed"


def direct_by_ip(stage: Stage) -> str:
    site = stage.home.sites[0]
    seen = stage.fetch("lan1", f"http://{site.ipv4}/")
    kernel_only(stage, stage.home.lan1.ipv4, site.ipv4, seen)
    return (
        f"{site.host} saw {seen['client'][0]}, TTL {seen['ttl']}: one hop more than the LAN host's, one entry tracked"
    )


def direct_by_domain(stage: Stage) -> str:
    """A name that no rule sends elsewhere, learned when it was asked for: the kernel alone carries its flows."""
    site = stage.home.sites[1]
    seen = stage.fetch("lan2", f"http://{site.names[0]}/", "-4")
    kernel_only(stage, stage.home.lan2.ipv4, site.ipv4, seen)
    return f"{site.names[0]} through the router's DNS, then {site.host} saw {seen['client'][0]}"


def direct_quic(stage: Stage) -> str:
    """UDP that an address rule sends directly: over IPv4 masqueraded, over IPv6 with the LAN host's own address."""
    site = stage.home.sites[0]
    for address, ours in ((site.ipv4, [stage.wan4]), (site.ipv6, addresses6(stage, "lan1"))):
        seen = http3(stage, "lan1", site.names[0], address)
        expect(seen["client"][0] in ours, f"{address} saw {seen['client'][0]}, not {ours}")
    return f"HTTP/3 to {site.names[0]} over IPv4 and IPv6"


def proxied_by_domain(stage: Stage) -> str:
    site = stage.home.sites[2]
    seen = stage.fetch("lan1", f"http://{site.names[0]}/", "-4")
    expect(seen["client"][0] in proxies(stage), f"{site.host} saw {seen['client'][0]}, not the proxy")
    ca = stage.lab.shared / "ca.pem"
    again = stage.fetch("lan2", f"https://{site.names[0]}/", "-4", "--cacert", str(ca))
    expect(again["client"][0] in proxies(stage), f"{site.host} saw {again['client'][0]} by HTTPS, not the proxy")
    return f"{site.names[0]}, told by Host and by SNI: {site.host} saw the proxy, {seen['client'][0]}"


def proxied_by_process(stage: Stage) -> str:
    """On the router: a program at one path is proxied, the same program at another goes directly."""
    site = stage.home.sites[0]
    for url in (f"http://{site.ipv4}/", f"http://[{site.ipv6}]/"):
        seen = stage.fetch("router", url, curl=str(stage.tool))
        expect(seen["client"][0] in proxies(stage), f"{site.host} saw {seen['client'][0]}, not the proxy")
    plain = stage.fetch("router", f"http://{site.ipv4}/", curl="/usr/bin/curl")
    expect(plain["client"][0] == stage.wan4, f"of another program {site.host} saw {plain['client'][0]}")
    return f"{stage.tool.parent.name}/{stage.tool.name} through the proxy, /usr/bin/curl directly"


def proxied_by_user(stage: Stage) -> str:
    """On the router: flows of one user are proxied, those of root go directly."""
    site, entry = stage.home.sites[0], pwd.getpwnam(USER)
    seen = stage.fetch("router", f"http://{site.ipv4}/", user=User(entry.pw_uid, entry.pw_gid))
    expect(seen["client"][0] in proxies(stage), f"of {USER} {site.host} saw {seen['client'][0]}, not the proxy")
    return f"{USER} through the proxy, root directly"


def ipv6_proxied(stage: Stage) -> str:
    site = stage.home.sites[2]
    seen = stage.fetch("lan1", f"http://{site.names[0]}/", "-6")
    expect(seen["client"][0] in proxies(stage), f"{site.host} saw {seen['client'][0]}, not the proxy")
    return f"asked over IPv6, {site.host} saw the proxy, {seen['client'][0]}"


def quic_sniffed(stage: Stage) -> str:
    site = stage.home.sites[3]
    seen = http3(stage, "lan1", site.names[0], site.ipv4)
    expect(seen["client"][0] in proxies(stage), f"{site.host} saw {seen['client'][0]}, not the proxy")
    return f"HTTP/3 to {site.names[0]}, known from its first packets: {site.host} saw the proxy"


def proxied_udp(stage: Stage) -> str:
    site = stage.home.sites[3]
    for address in (site.ipv4, site.ipv6):
        answer = udp(stage, "lan2", address)
        if answer is None:
            raise CheckError(f"no echo from {address}")
        expect(answer["client"][0] in proxies(stage), f"{address} saw {answer['client'][0]}, not the proxy")
    return f"UDP echo over IPv4 and IPv6: {site.host} saw the proxy"


def blocked(stage: Stage) -> str:
    site = stage.home.sites[4]
    for address in (site.ipv4, f"[{site.ipv6}]"):
        begun = time.monotonic()
        result = stage.lab.host("lan1").run(["curl", "-v", "-m", "5", f"http://{address}/"])
        expect("Connection refused" in result.err, f"curl {address}: exit {result.code}, not refused")
        expect(time.monotonic() - begun < 4, f"{address}: refused only after {time.monotonic() - begun:.1f} s")
    expect(not stage.lab.seen(site.host, "http"), f"{site.host} was reached")
    return f"{site.ipv4} and {site.ipv6} refuse at once, {site.host} saw nothing"


def dns_intercepted(stage: Stage) -> str:
    """A hard-coded resolver that does not exist: somebody on the way answers, and it is us."""
    site, absent = stage.home.sites[1], stage.home.sites[0].ipv4
    for flag in ("+notcp", "+tcp"):
        words = ["dig", "+short", "+time=3", "+tries=2", flag, f"@{absent}", site.names[0], "A"]
        answer = stage.lab.host("lan2").run(words).out.strip()
        expect(answer == site.ipv4, f"{flag}: {answer or 'nothing'}, wanted {site.ipv4}")
    return f"asked {absent}, which serves no names: {site.ipv4} came back by UDP and by TCP"


def ipv6_direct(stage: Stage) -> str:
    """IPv6 is routed, never translated: the server sees the LAN host's own address."""
    site = stage.home.sites[0]
    seen = stage.fetch("lan1", f"http://{site.names[0]}/", "-6")
    ours = addresses6(stage, "lan1")
    expect(seen["client"][0] in ours, f"{site.host} saw {seen['client'][0]}, lan1 has {ours}")
    expect(seen["ttl"] == 62, f"hop limit {seen['ttl']}, not 62")
    return f"{site.host} saw {seen['client'][0]} itself, hop limit {seen['ttl']}"


def port_forward_kept(stage: Stage) -> str:
    site = stage.home.sites[0]
    seen = stage.fetch(site.host, f"http://{stage.wan4}:{FORWARDED}/")
    expect(seen["client"][0] == site.ipv4, f"the LAN host saw {seen['client'][0]}, not {site.ipv4}")
    hairpin = stage.fetch("lan2", f"http://{stage.wan4}:{FORWARDED}/")
    expect(hairpin["site"] == "lan1", f"from inside, {hairpin['site']} answered")
    return f"{stage.wan4}:{FORWARDED} reaches lan1 from {site.host} and from lan2"


def own_ssh_kept(stage: Stage) -> str:
    for family, address in ((socket.AF_INET, stage.home.router_lan4), (socket.AF_INET6, stage.home.router_lan6)):
        with opened(stage, "lan1", address, 22, family) as sock:
            banner = sock.recv(100).decode()
        expect(banner.startswith("SSH-2.0-lab_router"), f"{address}:22 said {banner!r}")
    return "the router's login answers the LAN over IPv4 and IPv6"


def wan_closed(stage: Stage) -> str:
    """From the ISP's side: no port of the router and of the LAN answers; the same ports answer from inside."""
    isp = stage.lab.host("isp")
    isp.run(["ip", "route", "replace", stage.home.lan4, "via", stage.wan4], check=True)
    try:
        targets = [stage.wan4, stage.home.router_wan6, stage.home.lan1.ipv4, stage.home.lan1.ipv6]
        targets += [stage.home.router_lan4, stage.home.router_lan6]
        found = [f"{target}:{port}" for target in targets for port in answering(stage, "isp", target, PORTS)]
        expect(not found, f"answered from outside: {', '.join(found)}")
        for target in (stage.wan4, stage.home.router_wan6):
            expect(udp(stage, "isp", target, 53, 1.0) is None, f"{target} answers UDP 53")
    finally:
        isp.run(["ip", "route", "del", stage.home.lan4])
    inside = answering(stage, "lan2", stage.home.router_lan4, PORTS)
    expect(len(inside) == len(PORTS), f"from inside only {inside} answer: the scan proves nothing")
    return f"{len(targets)} addresses x {len(PORTS)} ports: silence outside, all accept or refuse inside"


def reload_keeps_flows(stage: Stage) -> str:
    """A port forward is added by SIGHUP while a TCP connection lives."""
    site = stage.home.sites[1]
    with opened(stage, "lan1", site.ipv4, 22, socket.AF_INET) as sock:
        sock.recv(200)
        talk(sock, "before")
        stage.changes["forwards"] = [
            *stage.configuration()["gateway"]["forwards"],
            {"network": "tcp", "port": FORWARDED + 1, "to": stage.home.lan2.ipv4, "to_port": 8080},
        ]
        stage.write()
        stage.signal(signal.SIGHUP)
        url = f"http://{stage.wan4}:{FORWARDED + 1}/"

        def forwarded() -> bool:
            with contextlib.suppress(CheckError):
                return bool(stage.fetch(site.host, url, timeout=1)["site"] == "lan2")
            return False

        told = stage.gateway.told() if stage.gateway else "no gateway runs"
        poll(forwarded, f"the new port forward does not work: {told}")
        talk(sock, "after")
    return "a forward was added; the connection begun before it went on"


def kill9_fails_open(stage: Stage) -> str:
    """SIGKILL: the LAN stays online, by name and by address, through the router's DNS and a hard-coded resolver."""
    gateway = stage.gateway
    if gateway is None:
        raise CheckError("no gateway runs")
    site, before = stage.home.sites[0], stage.wan4
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    begun = time.monotonic()
    stage.fetch("lan1", f"http://{site.ipv4}/", timeout=2)
    first = time.monotonic() - begun
    stage.fetch("lan1", f"http://{site.names[0]}/", "-4", timeout=5)
    stage.fetch("lan1", f"http://{site.names[0]}/", "-6", timeout=5)
    for server in (stage.home.router_lan4, stage.home.resolver.ipv4):
        answer = stage.lab.host("lan2").run(["dig", "+short", "+time=2", "+tries=2", f"@{server}", site.names[0], "A"])
        expect(answer.out.strip() == site.ipv4, f"{server} says {answer.out.strip() or 'nothing'}")
    expect(udp(stage, "lan2", stage.home.sites[3].ipv4) is not None, "no UDP")
    with opened(stage, "lan1", site.ipv4, 22, socket.AF_INET) as sock:
        sock.recv(200)
        stage.start()
        talk(sock, "after the restart")
    poll(lambda: stage.lease() == before, f"another lease after the restart: {stage.lease()}", 5)
    return (
        f"first page {first * 1000:.0f} ms after SIGKILL; names, UDP and IPv6 too; restart kept {before} and the flow"
    )


def clean_stop(stage: Stage, before: dict[str, str]) -> str:
    """After SIGTERM the LAN is online; after ``down`` the router is as it was."""
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    stage.signal(signal.SIGTERM)
    result = stage.gateway.wait()
    expect(result.ok, f"exit {result.code}: {result.err[-300:]}")
    stage.fetch("lan1", f"http://{stage.home.sites[0].ipv4}/")
    undone = stage.command("down")
    expect(undone.ok, f"down: {undone.err.strip()}")
    after = stage.snapshot()
    differing = [name for name in before if sorted(before[name].splitlines()) != sorted(after[name].splitlines())]
    lines = [
        f"{name}: {line}"
        for name in differing
        for line in set(before[name].splitlines()) ^ set(after[name].splitlines())
    ]
    expect(not differing, f"left behind: {'; '.join(sorted(lines)[:8])}")
    return f"{', '.join(before)}: as before"


PORTS = [*range(1, 100), 139, 443, 445, 853, 1080, 2000, 5353, 7890, 8080, 9090]

CHECKS: dict[str, Check] = {
    "late-uplink": late_uplink,
    "lease": lease,
    "direct-by-ip": direct_by_ip,
    "direct-by-domain": direct_by_domain,
    "direct-quic": direct_quic,
    "proxied-by-domain": proxied_by_domain,
    "proxied-by-process": proxied_by_process,
    "proxied-by-user": proxied_by_user,
    "proxied-udp": proxied_udp,
    "quic-sniffed": quic_sniffed,
    "blocked": blocked,
    "dns-intercepted": dns_intercepted,
    "ipv6-proxied": ipv6_proxied,
    "ipv6-direct": ipv6_direct,
    "port-forward-kept": port_forward_kept,
    "own-ssh-kept": own_ssh_kept,
    "wan-closed": wan_closed,
    "reload-keeps-flows": reload_keeps_flows,
    "renew": renew,
    "kill9-fails-open": kill9_fails_open,
}


def proxies(stage: Stage) -> tuple[str, str]:
    return stage.home.vps.ipv4, stage.home.vps.ipv6


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


def kernel_only(stage: Stage, source: str, destination: str, seen: dict[str, Any]) -> None:
    """The server saw the uplink's address with two hops used, and the router tracked one connection, the client's."""
    expect(seen["client"][0] == stage.wan4, f"the server saw {seen['client'][0]}, not {stage.wan4}")
    expect(seen["ttl"] == 62, f"TTL {seen['ttl']}, not 62: something between terminated the connection")
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
