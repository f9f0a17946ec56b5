"""What the demo does to a running gateway: reload, SIGKILL, SIGTERM, and what its LAN notices."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

from gateway.lab.forecast import CheckError, expect
from gateway.lab.observe import opened, talk
from gateway.lab.probe import Probes
from gateway.lab.snapshot import differences
from gateway.lab.stage import FORWARDED, Stage, poll

DEAD = 30.0
"""Seconds that the LAN must do without a gateway."""
BLINK, UDP_BLINK = 0.05, 1.0
"""Seconds after SIGKILL from which TCP and names, and UDP that was proxied, must work."""


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
        stage.write()
        stage.signal(signal.SIGHUP)
        url = f"http://{stage.wan4}:{FORWARDED + 1}/"

        def forwarded() -> bool:
            with contextlib.suppress(CheckError):
                return bool(stage.fetch(site.host, url, timeout=1)["site"] == "lan2")
            return False

        said = stage.gateway.told() if stage.gateway else "no gateway runs"
        poll(forwarded, f"the new port forward does not work: {said}")
        talk(sock, "after")
    return "a forward was added; the connection begun before it went on"


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
        time.sleep(max(0.0, killed + DEAD - time.monotonic()))
        until = time.monotonic()
        tracked = stage.lab.host("router").run(["conntrack", "-L", "-p", "udp", "--orig-port-dst", "7"]).out.strip()
        with opened(stage, "lan1", site.ipv4, 22, socket.AF_INET) as sock:
            sock.recv(200)
            stage.start()
            talk(sock, "after the restart")
            poll(lambda: stage.lease() == lease, f"another lease after the restart: {stage.lease()}", 5)
            talk(sock, "and with the lease")
    try:
        gaps = {kind: probes.judged(kind, killed, UDP_BLINK if kind[:3] == "udp" else BLINK, until) for kind in KINDS}
    except CheckError as error:
        raise CheckError(f"{error}; the router tracked: {tracked or 'nothing'}") from error
    quiet, count = max(gaps["udp4"], gaps["udp6"]), sum(map(probes.count, KINDS))
    return (
        f"{count} probes in {DEAD:.0f} s, none lost: TCP and names from {BLINK * 1000:.0f} ms, "
        f"UDP from its old port after {quiet * 1000:.0f} ms; "
        f"the restart kept {lease} and a flow begun before it"
    )


KINDS = ("tcp4", "tcp6", "udp4", "udp6", "router names", "far names")


NO_PROGRAMS = {case: {"bpf"} for case in ("no-bpf", "all-direct", "all-proxied")}
"""Sabotages under which no rule asks for a process, or no program can be attached."""


def clean_stop(stage: Stage, before: dict[str, str]) -> str:
    """After SIGTERM the LAN is online; after ``down`` the router is as it was."""
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    running = stage.snapshot()
    blind = {part for part, text in running.items() if text == before[part]}
    expect(blind <= NO_PROGRAMS.get(stage.sabotage, set()), f"a running gateway is not seen in: {', '.join(blind)}")
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
