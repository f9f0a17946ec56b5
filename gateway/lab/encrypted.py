"""The demo's checks of what the gateway asks and carries in TLS."""

from __future__ import annotations

from gateway.lab.forecast import expect
from gateway.lab.observe import page, proxied
from gateway.lab.stage import Stage, poll


def dot(stage: Stage) -> str:
    return _told(stage, 0, "TLS")


def doh(stage: Stage) -> str:
    return _told(stage, 1, "HTTPS")


def _told(stage: Stage, which: int, way: str) -> str:
    """A name that the resolver tells over no other way; a host of the LAN asks as always."""
    name, site = stage.home.secret_names[which], stage.home.sites[1]
    words = ["dig", "+short", "+time=3", "+tries=2", f"@{stage.home.router_lan4}", name, "A"]
    answer = stage.lab.host("lan1").run(words).out.strip()
    expect(answer == site.ipv4, f"{name}: {answer or 'nothing'}, wanted {site.ipv4}")
    log = (stage.lab.service_folder("resolver", "dnsmasq") / "log").read_text()
    expect(name not in log, f"{name} was asked for in the clear")
    return f"lan1 asked for {name}, the gateway asked the resolver over {way}, and nobody in the clear"


def trojan(stage: Stage) -> str:
    return _carried(stage, "trojan")


def vless(stage: Stage) -> str:
    return _carried(stage, "vless")


def _carried(stage: Stage, name: str) -> str:
    """A program of the router, over IPv4 and IPv6: the site saw the proxy, and the proxy a flow of this protocol."""
    site, curl = stage.home.sites[0], str(stage.copy(name))
    access = stage.lab.service_folder("vps", "xray") / "access"
    for address in (site.ipv4, site.ipv6):
        told = stage.predict(address, process=curl, uid=0, user="root")
        seen = stage.fetch("router", page(address), curl=curl)
        proxied(stage, site, seen)

        def logged(address: str = address) -> bool:
            lines = access.read_text().splitlines() if access.exists() else []
            return any(f"[{name} " in line and address in line for line in lines)

        poll(logged, f"the proxy carried nothing to {address} by {name}", 5)
        told.held(name)
    return f"{name}/curl through Xray by {name} in TLS, IPv4 and IPv6: {site.host} saw the proxy"
