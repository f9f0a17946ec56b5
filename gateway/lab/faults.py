"""What the demo does to a running gateway: reload, SIGKILL, SIGTERM, and what its LAN notices."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

from gateway.lab.forecast import CheckError, expect
from gateway.lab.observe import opened, page, talk
from gateway.lab.probe import Probes
from gateway.lab.snapshot import differences
from gateway.lab.stage import FORWARDED, Stage, poll

DEAD = 30.0
"""Seconds that the LAN must do without a gateway."""
BLINK, UDP_BLINK = 0.05, 1.0
"""Seconds after its death by SIGKILL from which TCP and names, and UDP that was proxied, must work."""


def reload_keeps_flows(stage: Stage) -> str:
    """A port forward is added by SIGHUP while a TCP connection lives."""
    site = stage.home.sites[1]
    told = stage.predict(site.ipv4, source="lan1", port=22)
    with opened(stage, "lan1", site.ipv4, 22, socket.AF_INET) as sock:
        told.held(stage.way(sock.recv(200).decode().split()[1]))
        talk(sock, "before")
        stage.changes["forwards"] = [
            *stage.configuration()["gateway"]["forwards"],
            {"network": "tcp", "port": FORWARDED + 1, "to": stage.home.lan2.ipv4, "to_port": 8080},
        ]
        said = stage.hangup()
        url = f"http://{stage.wan4}:{FORWARDED + 1}/"

        def forwarded() -> bool:
            with contextlib.suppress(CheckError):
                return bool(stage.fetch(site.host, url, timeout=1)["site"] == "lan2")
            return False

        poll(forwarded, f"the new port forward does not work: {said}")
        talk(sock, "after")
    return "a forward was added; the connection begun before it went on"


def fails_closed(stage: Stage) -> str:
    """``fail: closed`` by a reload, SIGKILL: nothing new leaves the LAN, what is direct and runs goes on. Then a
    restart with ``open``, as before."""
    gateway, site, far = stage.gateway, stage.home.sites[0], stage.home.sites[3]
    if gateway is None:
        raise CheckError("no gateway runs")
    stage.changes["fail"] = "closed"
    told = stage.hangup()
    expect("applied" in told, told)
    with contextlib.ExitStack() as stack:
        kinds = ((site.ipv4, socket.AF_INET), (site.ipv6, socket.AF_INET6))
        running = [stack.enter_context(opened(stage, "lan1", address, 22, kind)) for address, kind in kinds]
        for sock in running:
            sock.recv(200)
        try:
            gateway.signal(signal.SIGKILL)
            gateway.wait()
            dials = [(host, text) for host in ("lan1", "lan2") for one in (site, far) for text in (one.ipv4, one.ipv6)]
            begun = time.time()
            for host, address in dials:
                refused(stage, host, address)
            reached = [one for place in (site, far) for one in stage.lab.seen(place.host, after=begun)]
            expect(not reached, f"reached: {reached[:2]}")
            for sock in running:
                talk(sock, "without a gateway")
            words = ["dig", "+short", "+time=2", "+tries=2", f"@{stage.home.router_lan4}", site.names[0], "A"]
            answer = stage.lab.host("lan2").run(words).out.strip()
            expect(answer == site.ipv4, f"the router's own names: {answer or 'none'}")
        finally:
            del stage.changes["fail"]
            stage.start()
        for sock in running:
            talk(sock, "after the restart")
    stage.fetch("lan1", page(site.ipv4))
    return f"{len(dials)} dials of the LAN by TCP refused, as many by UDP in vain; direct flows begun before went on"


def refused(stage: Stage, host: str, address: str) -> None:
    """TCP is refused, and nothing comes back by UDP. Raises CheckError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 7)):
        with stage.lab.host(host).socket(family, kind) as sock:
            sock.settimeout(3 if kind == socket.SOCK_STREAM else 0.3)
            try:
                sock.connect((address, port))
                sock.send(b"GET / HTTP/1.0\r\n\r\n")
                sock.recv(100)
            except TimeoutError:
                # A client hears of one refusal a second by ICMP (net.ipv4.icmp_ratelimit); the caller asks the sites.
                expect(kind == socket.SOCK_DGRAM, f"{host} to {address}:{port}: silence, nobody refused")
            except OSError:
                continue
            else:
                raise CheckError(f"{host} reached {address}:{port}")


def kill9_fails_open(stage: Stage) -> str:
    """SIGKILL: the LAN, with private addresses, stays online, directly, by address and by name. Then a restart."""
    gateway = stage.gateway
    if gateway is None:
        raise CheckError("no gateway runs")
    lease, site = stage.wan4, stage.home.sites[3]
    told = stage.predict(site.ipv4, source="lan2", network="udp", port=7)
    with Probes(stage) as probes:
        first = poll(lambda: probes.last("udp4"), "the UDP socket with a fixed port has no answer")
        told.held(stage.way(first.client))
        expect(told.way == "proxy", f"the UDP socket was not proxied before: {told}")
        poll(lambda: probes.last("udp6"), "the UDP socket over IPv6 has no answer")
        killed = time.monotonic()
        gateway.signal(signal.SIGKILL)
        gateway.wait()
        dead = time.monotonic()
        time.sleep(DEAD)
        until = time.monotonic()
        tracked = stage.lab.host("router").run(["conntrack", "-L", "-p", "udp", "--orig-port-dst", "7"]).out.strip()
        with opened(stage, "lan1", site.ipv4, 22, socket.AF_INET) as sock:
            sock.recv(200)
            stage.start()
            talk(sock, "after the restart")
            poll(lambda: stage.lease() == lease, f"another lease after the restart: {stage.lease()}", 5)
            talk(sock, "and with the lease")
    try:
        gaps = {kind: probes.judged(kind, dead, UDP_BLINK if kind[:3] == "udp" else BLINK, until) for kind in KINDS}
    except CheckError as error:
        raise CheckError(f"{error}; the router tracked: {tracked or 'nothing'}") from error
    quiet, count = max(gaps["udp4"], gaps["udp6"]), sum(map(probes.count, KINDS))
    return (
        f"dead within {(dead - killed) * 1000:.0f} ms; {count} probes in {DEAD:.0f} s, none lost: "
        f"TCP and names from {BLINK * 1000:.0f} ms, "
        f"UDP from its old port after {quiet * 1000:.0f} ms; "
        f"the restart kept {lease} and a flow begun before it"
    )


KINDS = ("tcp4", "tcp6", "udp4", "udp6", "router names", "far names")


NO_PROGRAMS = frozenset({"no-bpf", "kernel-off", "all-direct", "all-proxied"})
"""Sabotages under which no rule asks for a process, or no program is or can be attached."""


def clean_stop(stage: Stage, before: dict[str, str]) -> str:
    """After SIGTERM the LAN is online; after ``down`` the router is as it was."""
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    running = stage.snapshot()
    blind = {part for part, text in running.items() if text == before[part]}
    unseen = set() if NO_PROGRAMS.isdisjoint(stage.sabotages) else {"bpf"}
    expect(blind <= unseen, f"a running gateway is not seen in: {', '.join(blind)}")
    stage.signal(signal.SIGTERM)
    result = stage.gateway.wait()
    expect(result.ok, f"exit {result.code}: {result.err[-300:]}")
    stage.fetch("lan1", f"http://{stage.home.sites[0].ipv4}/")
    undone = stage.command("down")
    expect(undone.ok, f"down: {undone.err.strip()}")
    left: list[str] = []
    with contextlib.suppress(CheckError):  # what was killed may take a moment to be gone
        poll(lambda: not left_over(stage, before, left), "", 5)
    expect(not left, f"left behind: {'; '.join(left[:8])}")
    return f"{', '.join(before)}: as before"


def left_over(stage: Stage, before: dict[str, str], left: list[str]) -> list[str]:
    """What differs now from ``before``, also put into ``left``."""
    left[:] = differences(before, stage.snapshot())
    return left
