"""The demo's checks of a box in a network that is somebody else's: a side router, and a port that has a DHCP client."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from gateway.box import RUN
from gateway.lab import peer
from gateway.lab.forecast import CheckError, expect
from gateway.lab.observe import addresses6, icmp, page
from gateway.lab.process import Process
from gateway.lab.stage import Stage, poll
from gateway.service.control import ask


@contextlib.contextmanager
def box(stage: Stage, host: str, gateway: dict[str, Any]) -> Iterator[tuple[Process, str]]:
    """A gateway with this ``gateway`` object on a host of the LAN, and its instance; undone afterwards."""
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    instance, path = f"{stage.instance}-{host}", stage.lab.folder / f"{host}.json"
    path.write_text(json.dumps({"gateway": {**gateway, "kernel": {"cgroup": str(stage.lab.host(host).group)}}}))
    process = stage.launch(host, [path], instance)
    try:
        yield process, instance
    finally:
        process.signal(signal.SIGTERM)
        process.wait()
        words = [sys.executable, "-m", "gateway", "down", "--instance", instance]
        undone = stage.lab.host(host).run(words)
    expect(undone.ok, f"{host}: down: {undone.err.strip()}")


def one_arm(stage: Stage) -> str:
    """``inner`` is a side router: lan2 has it as gateway for a site, the home's router stands on the same link."""
    site, inner, lan2 = stage.home.sites[0], stage.home.inner, stage.lab.host("lan2")
    static = {
        "address": [f"{inner.ipv4}/24", f"{inner.ipv6}/64"],
        "gateway": [stage.home.router_lan4, stage.home.router_lan6],
        "dns": [stage.home.router_lan4],
    }
    lans = [] if "no-arm" in stage.sabotages else [{"interface": "eth0"}]
    ways = [
        (f"-4 route %s {site.ipv4} via {inner.ipv4}", site.ipv4),
        (f"-6 route %s {site.ipv6} via {inner.ipv6}", site.ipv6),
    ]
    with box(stage, "inner", {"uplinks": [{"interface": "eth0", "static": static}], "lans": lans}) as (
        process,
        instance,
    ):
        poll(lambda: ask(RUN / instance, {"command": "status"})["uplinks"][0]["ready"], "inner is not ready")
        told = icmp(stage, "lan2", "Redirects")
        try:
            for line, _ in ways:
                lan2.run(["ip", *(line % "add").split()], check=True)
            for _, address in ways:
                stage.fetch("lan2", page(address))
                stage.fetch("lan1", page(address))
                assured(stage, address)
            expect(icmp(stage, "lan2", "Redirects") == told, "lan2 was told to leave inner out")
            process.signal(signal.SIGKILL)
            process.wait()
            for _, address in ways:
                stage.fetch("lan2", page(address))
        finally:
            for line, _ in ways:
                lan2.run(["ip", *(line % "del").split()])
    return "lan2 by inner, IPv4 and IPv6, answers too, no redirects; online after kill -9; lan1 passed by"


def assured(stage: Stage, address: str) -> None:
    """inner has tracked both ways of a connection to ``address``, translated to its own; none but lan2's. Raises
    CheckError."""
    inner, family = stage.home.inner, "ipv6" if ":" in address else "ipv4"
    out = stage.lab.host("inner").run(["conntrack", "-L", "-f", family, "-p", "tcp", "--orig-dst", address]).out
    rows = [line for line in out.splitlines() if "src=" in line]
    own = [f"src={address} dst={one} " for one in (inner.ipv4, *addresses6(stage, "inner"))]
    translated = any("[ASSURED]" in row and any(back in row for back in own) for row in rows)
    expect(translated, f"inner tracked: {rows or 'nothing'}")
    passing = [f"src={one} " for one in (stage.home.lan1.ipv4, *addresses6(stage, "lan1"))]
    strange = [row for row in rows if any(there in row for there in passing)]
    expect(not strange, f"lan1 came by inner: {strange}")


def second_dhcp_client_refused(stage: Stage) -> str:
    """On lan3 a DHCP client has the port: ours is not started beside it, and is once the other has gone."""
    place = "lan2" if "client-elsewhere" in stage.sabotages else "lan3"
    uplink = {"interface": "eth0", "dhcp4": {"start_delay": "0s"}, "priority": 90}
    client = stage.lab.host(place).popen([peer.path("busybox"), "udhcpc", "-f", "-i", "eth0", "-s", "/bin/true"])
    try:
        with box(stage, "lan3", {"uplinks": [uplink], "firewall": False}) as (_, instance):

            def shown() -> dict[str, Any]:
                found: dict[str, Any] = ask(RUN / instance, {"command": "status"})["uplinks"][0]
                return found

            found = poll(lambda: one if (one := shown())["owner"] or one["ready"] else None, "nothing is said of eth0")
            expect(found["owner"].startswith(f"udhcpc (process {client.pid})"), f"owner: {found['owner'] or 'none'}")
            expect('"external": true' in found["problem"], found["problem"])
            client.kill()
            poll(lambda: shown()["ready"], "no lease once the other client has gone")
    finally:
        client.kill()
    return f"{found['owner']} has eth0 of lan3: no client of ours beside it; when it had gone ours took a lease"
