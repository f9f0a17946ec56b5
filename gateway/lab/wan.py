"""The demo's checks of the uplink: the cable, the lease, and that nobody comes in by it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from gateway.lab.forecast import expect
from gateway.lab.observe import answering, udp, wan_addresses
from gateway.lab.stage import Stage, poll

PORTS = [*range(1, 100), 139, 443, 445, 853, 1080, 2000, 5353, 7890, 8080, 9090]


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
    stage.acked = stage.acks()
    poll(lambda: stage.wan4 in wan_addresses(stage), f"{stage.wan4} is not on the uplink")
    rows = json.loads(stage.lab.host("router").run(["ip", "-j", "-4", "addr", "show", "dev", "wan"]).out)
    found = [info for row in rows for info in row.get("addr_info", ()) if info["local"] == stage.wan4]
    expect(found, f"{stage.wan4} is not on the uplink")
    expect(0 < found[0]["valid_life_time"] <= 120, f"lifetime {found[0]['valid_life_time']} s, the lease has 120 s")

    def routed() -> bool:  # it comes after the address
        route = stage.lab.host("router").run(["ip", "-4", "route", "show", "default"]).out
        return f"via {stage.home.isp4} dev wan" in route

    poll(routed, f"no default route by {stage.home.isp4}", 5)
    return f"{stage.wan4} from {stage.home.isp4}, {found[0]['valid_life_time']} s left"


def renew(stage: Stage) -> str:
    """The server has acknowledged again at T1 (5 s here) since the lease was looked at; the address never left."""
    first = stage.acked or poll(stage.acks, "the DHCP server has acknowledged nothing")
    poll(lambda: stage.acks() > first, "no renewal")
    # The server rewrites its lease file: for a moment it may name nobody.
    poll(lambda: stage.lease() == stage.wan4, "another address after the renewal", 5)
    return f"acknowledged {stage.acks()} times, {stage.wan4} stayed"


def wan_closed(stage: Stage) -> str:
    """From the ISP's side: no port of the router and of the LAN answers; the same ports answer from inside."""
    isp = stage.lab.host("isp")
    isp.run(["ip", "route", "replace", stage.home.lan4, "via", stage.wan4], check=True)
    try:
        targets = [stage.wan4, stage.home.router_wan6, stage.home.lan1.ipv4, stage.home.lan1.ipv6]
        targets += [stage.home.router_lan4, stage.home.router_lan6]
        ports = sorted({*PORTS, *(port for kind, port in stage.lab.host("router").listeners() if kind == "tcp")})
        routers = (stage.wan4, stage.home.router_wan6)
        with ThreadPoolExecutor(len(targets) + len(routers)) as pool:
            scans = pool.map(lambda target: answering(stage, "isp", target, ports), targets)
            names = pool.map(lambda target: udp(stage, "isp", target, 53, 1.0), routers)
            found = [f"{target}:{port}" for target, open_ in zip(targets, scans, strict=True) for port in open_]
            found += [f"{target}:53 by UDP" for target, word in zip(routers, names, strict=True) if word is not None]
        expect(not found, f"answered from outside: {', '.join(found)}")
    finally:
        isp.run(["ip", "route", "del", stage.home.lan4])
    inside = answering(stage, "lan2", stage.home.router_lan4, PORTS)
    expect(len(inside) == len(PORTS), f"from inside only {inside} answer: the scan proves nothing")
    return f"{len(targets)} addresses x {len(ports)} ports: silence outside, all accept or refuse inside"
