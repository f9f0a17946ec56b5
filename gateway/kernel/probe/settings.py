"""Settings of the network that drop or divert what the gateway steers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from gateway.kernel.probe.finding import Finding, answer, parameter
from gateway.kernel.probe.ruleset import Ruleset

CONF = Path("/proc/sys/net/ipv4/conf")


def rp_filter(ruleset: Ruleset) -> Iterator[Finding]:
    """The reverse path of a marked packet is looked up with its mark where src_valid_mark is on (wg-quick sets it): by
    our ip rule it leads to lo, and a strict filter drops what a LAN sends to userspace. Without it a strict one is no
    harm but to answers that come by another uplink."""
    values = {path.parent.name: path.read_text().strip() for path in CONF.glob("*/rp_filter")}
    every = values.pop("all", "0")
    strict = sorted(name for name, value in values.items() if max(value, every) == "1" and name != "default")
    marked = {
        name for name in strict if "1" in (parameter(f"net/ipv4/conf/{one}/src_valid_mark") for one in (name, "all"))
    }
    lost = sorted(marked & set(ruleset.lans or strict) - {"lo"})
    yield Finding(
        "src-valid-mark", not lost,
        f"on {', '.join(lost)}, and rp_filter strict: what is sent to userspace is dropped" if lost else "",
        "; ".join(_loose(name) for name in lost),
    )  # fmt: skip
    yield Finding(
        "rp-filter", not strict, f"strict on {', '.join(strict)}: several uplinks need loose" if strict else "",
        "; ".join(_loose(name) for name in strict), needed=False,
    )  # fmt: skip


def _loose(name: str) -> str:
    return shlex.join(["sysctl", "-w", f"net/ipv4/conf/{name}/rp_filter=2"])


def bridged(ruleset: Ruleset) -> Iterator[Finding]:
    """br_netfilter calls the IP hooks before the bridge has passed a frame up, and the socket that tproxy found is lost
    on that way: what a LAN that is a bridge sends to userspace never arrives. The switch for all bridges goes off, and
    those of Docker and libvirt are switched on alone."""
    links = answer("ip", "-j", "-d", "link", "show", "type", "bridge") or ()
    own = {str(link["ifname"]): link["linkinfo"]["info_data"] for link in links if "linkinfo" in link}
    lans = sorted(own.keys() & set(ruleset.lans) if ruleset.lans else own)
    for family in ("iptables", "ip6tables"):
        name, flag = f"bridge-nf-call-{family}", f"nf_call_{family}"
        every = parameter(f"net/bridge/{name}") == "1"
        hurt = [one for one in lans if every or own[one].get(flag)]
        lines = [f"ip link set {shlex.quote(one)} type bridge {flag} 0" for one in hurt if own[one].get(flag)]
        if hurt and every:
            others = map(shlex.quote, sorted(own.keys() - set(lans)))
            lines += [f"ip link set {one} type bridge {flag} 1" for one in others]
            lines.append(f"sysctl -w net/bridge/{name}=0")
        detail = f"frames on {', '.join(hurt)} pass the IP hooks inside the bridge: no tproxy there" if hurt else ""
        yield Finding(name, not hurt, detail, "; ".join(lines))
