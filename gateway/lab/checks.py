"""What the demo shows, one function a check: each drives real clients and asks the others what they saw.

A check asks the gateway for nothing but its prediction. It returns one line for a person, or raises CheckError.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

from gateway.kernel import mark
from gateway.lab.arm import one_arm, second_dhcp_client_refused
from gateway.lab.beside import foreign_marks_kept, tun_lan_wide
from gateway.lab.encrypted import doh, dot, trojan, vless
from gateway.lab.faults import fails_closed, kill9_fails_open, reload_keeps_flows
from gateway.lab.forecast import ROUTED, CheckError, expect
from gateway.lab.groups import urltest
from gateway.lab.observe import (
    NOBODY,
    addresses6,
    http3,
    kernel_only,
    opened,
    proxied,
    tracked_mark,
    udp,
    visit,
)
from gateway.lab.own import (
    proxied_by_cgroup,
    proxied_by_exact_path,
    proxied_by_group,
    proxied_by_process,
    proxied_by_user,
)
from gateway.lab.safety import pause, trial_rolls_back
from gateway.lab.stage import FORWARDED, FORWARDED_UDP, Stage
from gateway.lab.wan import late_uplink, lease, renew, wan_closed

Check = Callable[[Stage], str]


def direct_by_ip(stage: Stage) -> str:
    site = stage.home.sites[0]
    told = stage.predict(site.ipv4, source="lan1")
    seen = stage.fetch("lan1", f"http://{site.ipv4}/")
    kernel_only(stage, stage.home.lan1.ipv4, site.ipv4, seen)
    told.held(stage.way(seen["client"][0]), seen["ttl"])
    return f"{site.host} saw {seen['client'][0]}, TTL {seen['ttl']}, one hop more than lan1's; one entry tracked"


def direct_by_domain(stage: Stage) -> str:
    """A name that no rule sends elsewhere, learned when it was asked for: the kernel alone carries its flows."""
    site = stage.home.sites[1]
    seen = visit(stage, "lan2", site, site.names[0])
    kernel_only(stage, stage.home.lan2.ipv4, site.ipv4, seen)
    return f"{site.names[0]} through the router's DNS, then {site.host} saw {seen['client'][0]}"


def direct_by_mac(stage: Stage) -> str:
    """All of one device is the kernel's, TCP and UDP, where another one goes through the proxy to the same site."""
    far, echo = stage.home.sites[2], stage.home.sites[3]
    for family in (4, 6):
        proxied(stage, far, visit(stage, "lan1", far, far.names[0], family))
        seen = visit(stage, "lan3", far, far.names[0], family)
        if family == 4:
            kernel_only(stage, stage.home.lan3.ipv4, far.ipv4, seen)
        address, ours = (echo.ipv4, [stage.wan4]) if family == 4 else (echo.ipv6, addresses6(stage, "lan3"))
        told = stage.predict(address, source="lan3", network="udp", port=7)
        proxied(stage, echo, udp(stage, "lan1", address) or NOBODY)
        answer = udp(stage, "lan3", address) or NOBODY
        for heard in (seen, answer):
            expect(heard["client"][0] in ours, f"IPv{family}: a site saw {heard['client'][0]}, not {ours}")
            expect(heard["ttl"] == ROUTED, f"IPv{family}: TTL {heard['ttl']}, not {ROUTED}")
        told.held(stage.way(answer["client"][0]), answer["ttl"])
    return (
        f"{far.host} saw lan1 through the proxy and {stage.home.lan3_mac}, lan3, directly: TCP and UDP, IPv4 and IPv6"
    )


def direct_quic(stage: Stage) -> str:
    """UDP that an address rule sends directly: over IPv4 masqueraded, over IPv6 with the LAN host's own address."""
    site = stage.home.sites[0]
    for address, ours in ((site.ipv4, [stage.wan4]), (site.ipv6, addresses6(stage, "lan1"))):
        told = stage.predict(address, source="lan1", network="udp", port=443, shown=site.names[0])
        seen = http3(stage, "lan1", site.names[0], address)
        expect(seen["client"][0] in ours, f"{address} saw {seen['client'][0]}, not {ours}")
        told.held(stage.way(seen["client"][0]))
    return f"HTTP/3 to {site.names[0]} over IPv4 and IPv6"


def proxied_by_domain(stage: Stage) -> str:
    site = stage.home.sites[2]
    for host, scheme in (("lan1", "http"), ("lan2", "https")):
        seen = visit(stage, host, site, site.names[0], scheme=scheme)
        proxied(stage, site, seen)
    return f"{site.names[0]}, told by Host and by SNI: {site.host} saw the proxy, {seen['client'][0]}"


def shared_address_conflict(stage: Stage) -> str:
    """Two names of one address, one proxied and one direct. The direct one is asked for first: what the kernel learned
    of it must not catch the other. Then all again, now that both are known."""
    site = stage.home.sites[5]
    far, near = site.names
    for family in (4, 6):
        for host, names in (("lan1", (near, far)), ("lan2", (far, near))):
            for name in names:
                for scheme in ("http", "https"):
                    seen = visit(stage, host, site, name, family, scheme)
                    wanted = "proxy" if name == far else "direct"
                    went = stage.way(seen["client"][0])
                    expect(went == wanted, f"{scheme}://{name} over IPv{family} from {host} went {went}")
    return f"{far} through the proxy, {near} directly, both {site.ipv4}: by Host and SNI, twice, IPv6 too"


def ipv6_proxied(stage: Stage) -> str:
    site = stage.home.sites[2]
    seen = visit(stage, "lan1", site, site.names[0], 6)
    proxied(stage, site, seen)
    return f"asked over IPv6, {site.host} saw the proxy, {seen['client'][0]}"


def quic_sniffed(stage: Stage) -> str:
    site = stage.home.sites[3]
    told = stage.predict(site.ipv4, source="lan1", network="udp", port=443, shown=site.names[0])
    seen = http3(stage, "lan1", site.names[0], site.ipv4)
    told.held(stage.way(seen["client"][0]))
    proxied(stage, site, seen)
    return f"HTTP/3 to {site.names[0]}, known from its first packets: {site.host} saw the proxy"


def quic_handed_back(stage: Stage) -> str:
    """Of two names of one address the direct one: userspace reads the first packet, the kernel has all others."""
    site = stage.home.sites[5]
    name = site.names[1]
    for family, address in ((4, site.ipv4), (6, site.ipv6)):
        told = stage.predict(address, source="lan2", network="udp", port=443, shown=name)
        expect(told.place == "userspace", f"predicted {told}: the first packet is the kernel's")
        before = stage.counted("to_sniff")
        seen = http3(stage, "lan2", name, address)
        expect(stage.counted("to_sniff") > before, f"IPv{family}: no flow was given to the sniffer")
        told.held(stage.way(seen["client"][0]))
        client, wanted = seen["client"][0], [stage.wan4] if family == 4 else addresses6(stage, "lan2")
        expect(client in wanted, f"{address} saw {client}, not {wanted}")
        expect(len(seen["clients"]) == 1, f"{address} saw more than one: {seen['clients']}")
        rows = stage.conntrack("-f", f"ipv{family}", "-p", "udp", "--orig-dst", address, "--dport", "443")
        rows = [row for row in rows if f"dport={seen['client'][1]} " in row]
        expect(len(rows) == 1, f"{len(rows)} entries tracked for the connection: {rows}")
        source = stage.home.lan2.ipv4 if family == 4 else client
        expect(f"src={source} " in rows[0] and f"dst={client} " in rows[0], f"tracked: {rows[0]}")
        expect(tracked_mark(rows[0]) & mark.CLASS == mark.DIRECT, f"not the kernel's: {rows[0]}")
    return f"HTTP/3 to {name}, IPv4 and IPv6: known by its first packet, then the kernel's; {site.host} saw one port"


def proxied_udp(stage: Stage) -> str:
    site = stage.home.sites[3]
    for address in (site.ipv4, site.ipv6):
        told = stage.predict(address, source="lan2", network="udp", port=7)
        answer = udp(stage, "lan2", address)
        if answer is None:
            raise CheckError(f"no echo from {address}")
        told.held(stage.way(answer["client"][0]))
        proxied(stage, site, answer)
    return f"UDP echo over IPv4 and IPv6: {site.host} saw the proxy"


def blocked(stage: Stage) -> str:
    site = stage.home.sites[4]
    for address in (site.ipv4, f"[{site.ipv6}]"):
        told = stage.predict(address.strip("[]"), source="lan1")
        begun = time.monotonic()
        result = stage.lab.host("lan1").run(["curl", "-v", "-m", "5", f"http://{address}/"])
        expect("Connection refused" in result.err, f"curl {address}: exit {result.code}, not refused")
        expect(time.monotonic() - begun < 4, f"{address}: refused only after {time.monotonic() - begun:.1f} s")
        told.held("reject")
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
    seen = visit(stage, "lan1", site, site.names[0], 6)
    ours = addresses6(stage, "lan1")
    expect(seen["client"][0] in ours, f"{site.host} saw {seen['client'][0]}, lan1 has {ours}")
    expect(seen["ttl"] == ROUTED, f"hop limit {seen['ttl']}, not {ROUTED}")
    return f"{site.host} saw {seen['client'][0]} itself, hop limit {seen['ttl']}"


def port_forward_kept(stage: Stage) -> str:
    site = stage.home.sites[0]
    seen = stage.fetch(site.host, f"http://{stage.wan4}:{FORWARDED}/")
    expect(seen["client"][0] == site.ipv4, f"the LAN host saw {seen['client'][0]}, not {site.ipv4}")
    hairpin = stage.fetch("lan2", f"http://{stage.wan4}:{FORWARDED}/")
    expect(hairpin["site"] == "lan1", f"from inside, {hairpin['site']} answered")
    return f"{stage.wan4}:{FORWARDED} reaches lan1 from {site.host} and from lan2"


def hairpin_udp(stage: Stage) -> str:
    """A UDP port of lan1, forwarded: from the internet, from lan2 and from lan1 itself, at the uplink's address. The
    answer comes from there; a host of the LAN would take no other."""
    site, here = stage.home.sites[0], (stage.wan4, FORWARDED_UDP)
    for host, client in ((site.host, site.ipv4), ("lan2", stage.home.router_lan4), ("lan1", stage.home.router_lan4)):
        with stage.lab.host(host).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.sendto(b"hairpin", here)
            try:
                data, source = sock.recvfrom(65535)
            except OSError as error:
                raise CheckError(f"{host} to {here[0]}:{here[1]}: {error}") from None
        seen = json.loads(data)
        expect(source == here, f"{host} asked {here} and {source} answered")
        expect(seen["site"] == "lan1", f"{seen['site']} answered {host}")
        expect(seen["client"][0] == client, f"lan1 saw {seen['client'][0]}, not {client}")
    return f"{here[0]}:{here[1]} by UDP reaches lan1 from {site.host}, lan2 and lan1, and answers from there"


def own_ssh_kept(stage: Stage) -> str:
    for family, address in ((socket.AF_INET, stage.home.router_lan4), (socket.AF_INET6, stage.home.router_lan6)):
        with opened(stage, "lan1", address, 22, family) as sock:
            banner = sock.recv(100).decode()
        expect(banner.startswith("SSH-2.0-lab_router"), f"{address}:22 said {banner!r}")
    return "the router's login answers the LAN over IPv4 and IPv6"


CHECKS: dict[str, Check] = {
    "late-uplink": late_uplink,
    "lease": lease,
    "direct-by-ip": direct_by_ip,
    "direct-by-domain": direct_by_domain,
    "direct-by-mac": direct_by_mac,
    "direct-quic": direct_quic,
    "proxied-by-domain": proxied_by_domain,
    "shared-address-conflict": shared_address_conflict,
    "proxied-by-process": proxied_by_process,
    "proxied-by-exact-path": proxied_by_exact_path,
    "proxied-by-user": proxied_by_user,
    "proxied-by-group": proxied_by_group,
    "proxied-by-cgroup": proxied_by_cgroup,
    "proxied-udp": proxied_udp,
    "trojan": trojan,
    "vless": vless,
    "quic-sniffed": quic_sniffed,
    "quic-handed-back": quic_handed_back,
    "blocked": blocked,
    "dns-intercepted": dns_intercepted,
    "dot": dot,
    "doh": doh,
    "ipv6-proxied": ipv6_proxied,
    "ipv6-direct": ipv6_direct,
    "port-forward-kept": port_forward_kept,
    "hairpin-udp": hairpin_udp,
    "own-ssh-kept": own_ssh_kept,
    "second-dhcp-client-refused": second_dhcp_client_refused,
    "urltest": urltest,
    "foreign-marks-kept": foreign_marks_kept,
    "tun-lan-wide": tun_lan_wide,
    "one-arm": one_arm,
    "trial-rolls-back": trial_rolls_back,
    "wan-closed": wan_closed,
    "pause": pause,
    "reload-keeps-flows": reload_keeps_flows,
    "renew": renew,
    "fails-closed": fails_closed,
    "kill9-fails-open": kill9_fails_open,
}
