"""Plans to nft text."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from gateway.kernel.plan import Base, PortForward


def base(plan: Base, text: str, guard: str) -> str:
    """One transaction that replaces the base table: ``text`` is ``nft/base.nft``, ``guard`` is ``nft/guard.nft``.
    Raises ValueError on a bad interface name."""
    lines = ["add table inet gateway_base", "delete table inet gateway_base", text]
    if plan.fail != "open":
        lines.append(guard)
    lines += _elements("wans", [quote(name) for name in plan.wans])
    lines += narrow(plan.wans)
    lines += _elements("lans", [quote(name) for name in plan.lans])
    lines += _elements("open_tcp", map(str, plan.open_tcp))
    lines += _elements("open_udp", map(str, plan.open_udp))
    lines += [f"add rule inet gateway_base {forward(item)}" for item in plan.forwards]
    lines += _arms(plan)
    if not plan.firewall:
        lines.append("flush chain inet gateway_base wan_input")
        lines.append("flush chain inet gateway_base wan_forward")
    return "\n".join(lines) + "\n"


def narrow(wans: Iterable[str]) -> list[str]:
    """Commands after which TCP's segment size is clamped on ``wans`` and nowhere else."""
    names = ", ".join(quote(name) for name in wans)
    segment = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    ways = [f"add rule inet gateway_base clamp {way} {{ {names} }} {segment}" for way in ("oifname", "iifname")]
    shaken = "add rule inet gateway_base clamp ct status assured return"
    return ["flush chain inet gateway_base clamp", *((shaken, *ways) if names else ())]


def _arms(plan: Base) -> list[str]:
    """The clients' other router is on their own link: it would answer them without us, so that both families are
    translated; and they are not told to leave us out (redirects, RFC 4861 section 8; of IPv4 it is a sysctl)."""
    if not plan.arms:
        return []
    names = ", ".join(map(quote, plan.arms))
    lines = [
        "add chain inet gateway_base redirects { type filter hook output priority filter; policy accept; }",
        f"add rule inet gateway_base redirects oifname {{ {names} }} icmpv6 type nd-redirect drop",
        f"add rule inet gateway_base postrouting meta nfproto ipv4 iifname @lans oifname {{ {names} }} masquerade",
        f"add rule inet gateway_base postrouting iifname {{ {names} }} oifname {{ {names} }} masquerade",
    ]
    if plan.fail != "open":
        lines.append(f"add rule inet gateway_base guard iifname @lans oifname {{ {names} }} jump leaving")
    return lines


def _elements(name: str, values: Iterable[str]) -> list[str]:
    joined = ", ".join(values)
    return [f"add element inet gateway_base {name} {{ {joined} }}"] if joined else []


def forward(item: PortForward) -> str:
    """Chain and rule of one port forward: translation for IPv4; IPv6 is routed, there it is an opening."""
    ip = ip_address(item.to)
    if ip.version == 6:
        return f"pinholes ip6 daddr {ip} {item.network} dport {item.to_port or item.port} accept"
    return f"forwards meta nfproto ipv4 {item.network} dport {item.port} dnat ip to {ip}:{item.to_port or item.port}"


def quote(name: str) -> str:
    """An interface name as nft text. Raises ValueError where the name could end the string."""
    if not name or len(name) > 15 or any(c in name for c in '"\\/ \n\t') or name in (".", ".."):
        raise ValueError(f"{name!r} is not an interface name")
    return f'"{name}"'
