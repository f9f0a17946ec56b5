"""One rtnetlink socket and what is done through it: dump, diff, apply, read back.

It needs asyncio's own event loop (pyroute2 hands an AF_NETLINK socket to it, which uvloop refuses) and one caller at a
time (a second dump on a netlink socket is EBUSY): ``reconciler.Netlink`` gives it a thread with both.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Literal

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel import mark
from gateway.kernel.netlink import diff
from gateway.kernel.netlink.diff import Address, Inverse, Route, Rule, RuleAction, Step
from gateway.kernel.netlink.link import Link, link_of

FOREVER = 0xFFFFFFFF
NODAD = 0x02
NOPREFIXROUTE = 0x200
ONLINK = 4
RTN_LOCAL = 2
RTN_UNICAST = 1
HOST_SCOPE, LINK_SCOPE = 254, 253
PASSES = 3
"""Times to read back and repair before giving up."""
GONE = frozenset((errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO))

INVERT = 2
_ACTIONS: dict[int, RuleAction] = {1: "lookup", 2: "goto", 3: "nop", 7: "unreachable"}
_NUMBERS = {name: number for number, name in _ACTIONS.items()}
Prefix = IPv4Network | IPv6Network
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_VERSION = {socket.AF_INET: 4, socket.AF_INET6: 6}


class Session:
    """All methods raise KernelError. ``record`` gets the inverse of a step before the step is done, each once."""

    def __init__(self, record: Callable[[Inverse], None]) -> None:
        self._record = record
        self._recorded: set[str] = set()
        self._untagged: set[tuple[str, IP, int]] = set()
        """Addresses that are ours without our tag, as long as they are there."""
        self._route: Any = None

    async def open(self) -> None:
        self._route = AsyncIPRoute()
        await self._route.__aenter__()

    async def close(self) -> None:
        route, self._route = self._route, None
        await route.__aexit__(None, None, None)

    # What is there

    async def links(self) -> dict[str, Link]:
        async with _errors("links"):
            filtered = await self._filtered()
            found = [link_of(message, filtered) async for message in await self._route.get_links()]
            return {link.name: link for link in found}

    async def _filtered(self) -> set[int]:
        """Interfaces with an ingress or clsact qdisc. A kernel without CONFIG_NET_SCHED has none."""
        try:
            found = [message async for message in await self._route.get_qdiscs()]
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            return set()
        return {message["index"] for message in found if message.get("kind") in ("ingress", "clsact")}

    async def addresses(self, interface: str) -> list[Address]:
        async with _errors("addresses"):
            return await self._addresses(interface, await self._index(interface))

    async def prefixes(self) -> frozenset[Prefix]:
        """Networks of all addresses of this host that are valid beyond their link; those of ``lo`` are in it."""
        async with _errors("addresses"):
            found: set[Prefix] = set()
            async for message in await self._route.get_addr():
                text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
                if text and message["scope"] != LINK_SCOPE:
                    found.add(ip_network((text, message["prefixlen"]), strict=False))
            return frozenset(found)

    async def routes(self, interface: str) -> list[Route]:
        """Unicast and local routes out of ``interface``, every table, the kernel's own ones included."""
        async with _errors("routes"):
            return await self._routes(interface, await self._index(interface))

    async def rules(self) -> list[Rule]:
        async with _errors("rules"):
            return await self._rules()

    # What is wanted

    async def reconcile(self, interface: str, addresses: Iterable[Address], routes: Iterable[Route]) -> int:
        """Make ``interface`` have these addresses and routes and no others of ours. Returns the number of steps; 0
        means that nothing was touched."""
        want = tuple(addresses), tuple(routes)
        count = 0
        async with _errors(f"reconcile {interface}"):
            index = await self._index(interface)
            for _ in range(PASSES):
                steps = await self._steps(interface, index, *want)
                if not steps:
                    return count
                for step in steps:
                    await self._apply(step, index)
                count += len(steps)
                await self._note_untagged(interface, index, steps)
            if await self._steps(interface, index, *want):
                raise KernelError(f"reconcile {interface}", 0, "the kernel does not keep what was written")
        return count

    async def _note_untagged(self, interface: str, index: int, steps: Iterable[Step]) -> None:
        """Linux 6.1 leaves the tag of an IPv4 address that was there before as it is: such a one counts as ours from
        now on, or it would be written for ever."""
        taken = {step.item.key for step in steps if step.op == "set" and isinstance(step.item, Address)}
        if taken:
            left = [item for item in await self._addresses(interface, index) if item.key in taken]
            self._untagged |= {(interface, *item.key) for item in left if item.proto != mark.PROTO}

    async def reconcile_rules(self, want: Iterable[Rule]) -> int:
        async with _errors("rules"):
            return await self._all(diff.rules(await self._rules(), want))

    async def add_rules(self, rules: Iterable[Rule]) -> None:
        async with _errors("rules"):
            await self._all(diff.add(rule) for rule in rules)

    async def delete_rules(self, rules: Iterable[Rule]) -> None:
        async with _errors("rules"):
            await self._all(Step("delete", rule) for rule in rules)

    async def _all(self, steps: Iterable[Step]) -> int:
        every = tuple(steps)
        for step in every:
            await self._apply(step, 0)
        return len(every)

    async def set_link(self, interface: str, *, up: bool | None = None, mtu: int = 0) -> None:
        """Writes only what differs; ``mtu`` 0 leaves it."""
        async with _errors(f"link {interface}"):
            link = await self._link(interface)
            change: dict[str, Any] = {}
            head = {"kind": "link", "op": "set", "interface": interface}
            if up is not None and link.up != up:
                change["state"] = "up" if up else "down"
                self._note(head | {"up": link.up})
            if mtu and link.mtu != mtu:
                change["mtu"] = mtu
                self._note(head | {"mtu": link.mtu, "was": mtu})
            if change:
                await self._route.link("set", index=link.index, **change)

    async def filter_bridge(self, interface: str, on: bool = True) -> None:
        """Whether what a bridge forwards passes iptables and nftables, IPv4 and IPv6."""
        async with _errors(f"link {interface}"):
            link = await self._link(interface)
            if link.bridge is None or link.bridge is on:
                return
            self._note({"kind": "link", "op": "set", "interface": interface, "bridge": link.bridge})
            await self._filter_bridge(link.index, on)

    async def _filter_bridge(self, index: int, on: bool) -> None:
        calls = {"br_nf_call_iptables": int(on), "br_nf_call_ip6tables": int(on)}
        await self._route.link("set", index=index, kind="bridge", **calls)

    async def bridge(self, name: str, ports: Iterable[str]) -> None:
        """A bridge of this name with these ports, as far as they exist, up; made where there is none. Its hardware
        address stays the same whatever ports come."""
        async with _errors(f"bridge {name}"):
            made = await self._find(name)
            if made is None:
                self._note({"kind": "link", "op": "delete", "interface": name})
                address = ":".join(f"{byte:02x}" for byte in (2, *os.urandom(5)))
                await self._route.link("add", ifname=name, kind="bridge", address=address, group=mark.PROTO)
                made = await self._link(name)
            if made.kind != "bridge":
                raise KernelError(f"bridge {name}", errno.EEXIST, "it is no bridge")
            for port in ports:
                await self._join(port, made)

    async def _join(self, port: str, bridge: Link) -> None:
        link = await self._find(port)
        if link is None or link.master == bridge.index:
            return
        if link.master:
            raise KernelError(f"bridge {bridge.name}", errno.EBUSY, f"{port} is a port of another one")
        self._note({"kind": "link", "op": "free", "interface": port, "master": bridge.name})
        await self._route.link("set", index=link.index, master=bridge.index)

    async def undo(self, step: Inverse) -> None:
        """Do one inverse. What is gone, or no longer as we left it, is success."""
        name = step.get("interface", "lo")
        async with _errors(f"undo {step['kind']}"):
            link = await self._find(name)
            match step["kind"]:
                case _ if link is None:
                    return
                case "address":
                    await self._undo_address(step, link.index)
                case "route":
                    await self._undo_route(step, link.index)
                case "rule":
                    rule = diff.rule_of(step)
                    if rule in await self._rules():
                        await self._gone_is_fine(self._rule("del", rule))
                case "link" if step["op"] == "delete":
                    if link.group == mark.PROTO:
                        await self._gone_is_fine(self._route.link("del", index=link.index))
                case "link" if step["op"] == "free":
                    bridge = await self._find(step["master"])
                    if bridge is not None and link.master == bridge.index:
                        await self._gone_is_fine(self._route.link("set", index=link.index, master=0))
                case "link" if "mtu" in step and link.mtu == step["was"]:
                    await self._gone_is_fine(self._route.link("set", index=link.index, mtu=step["mtu"]))
                case "link" if "bridge" in step and link.bridge is not None:
                    await self._gone_is_fine(self._filter_bridge(link.index, step["bridge"]))
                case "link" if "up" in step and link.up != step["up"]:
                    state = "up" if step["up"] else "down"
                    await self._gone_is_fine(self._route.link("set", index=link.index, state=state))

    async def _undo_address(self, step: Inverse, index: int) -> None:
        ip, _, prefix = step["address"].partition("/")
        key = ip_address(ip), int(prefix)
        for item in await self._addresses(step["interface"], index):
            if item.key != key:
                continue
            if step["op"] == "delete":
                if item.proto == mark.PROTO:
                    await self._gone_is_fine(self._address("delete", item, index))
            # Its own tag: the kernel did not take ours.
            elif item.proto in (mark.PROTO, step["proto"]):
                old = Address(item.interface, *key, step["valid"], step["preferred"], step["proto"])
                await self._address("replace", old, index)

    async def _undo_route(self, step: Inverse, index: int) -> None:
        key = ip_network(step["destination"]), step["table"], step["metric"]
        for item in await self._routes(step["interface"], index):
            if item.key == key and item.proto == step["proto"] and item.type == step["type"]:
                await self._gone_is_fine(self._write_route("del", item, index))

    # Dumps

    async def _find(self, interface: str) -> Link | None:
        # The dump is read to its end: the next one would be EBUSY.
        links = [link_of(message) async for message in await self._route.get_links()]
        return next((link for link in links if link.name == interface), None)

    async def _link(self, interface: str) -> Link:
        link = await self._find(interface)
        if link is None:
            raise KernelError(f"interface {interface}", errno.ENODEV)
        return link

    async def _index(self, interface: str) -> int:
        return (await self._link(interface)).index

    async def _addresses(self, interface: str, index: int) -> list[Address]:
        found = []
        async for message in await self._route.get_addr():
            text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            if message["index"] != index or not text:
                continue
            cache = message.get("IFA_CACHEINFO") or {}
            valid, preferred = (cache.get(name, FOREVER) for name in ("ifa_valid", "ifa_preferred"))
            found.append(
                Address(
                    interface, ip_address(text), message["prefixlen"], None if valid == FOREVER else valid,
                    None if preferred == FOREVER else preferred, message.get("IFA_PROTO") or 0,
                    bool((message.get("IFA_FLAGS") or 0) & NOPREFIXROUTE),
                )
            )  # fmt: skip
        return found

    async def _routes(self, interface: str, index: int) -> list[Route]:
        found = []
        async for message in await self._route.get_routes():
            family = _VERSION.get(message["family"])
            if message.get("RTA_OIF") != index or message["type"] not in (RTN_LOCAL, RTN_UNICAST) or family is None:
                continue
            text = message.get("RTA_DST") or ("0.0.0.0" if family == 4 else "::")
            gateway, source = message.get("RTA_GATEWAY"), message.get("RTA_PREFSRC")
            found.append(
                Route(
                    interface, ip_network((text, message["dst_len"])), ip_address(gateway) if gateway else None,
                    message.get("RTA_PRIORITY") or 0, message.get("RTA_TABLE") or message["table"], message["proto"],
                    ip_address(source) if source else None, bool(message["flags"] & ONLINK),
                    "local" if message["type"] == RTN_LOCAL else "unicast",
                )
            )  # fmt: skip
        return found

    async def _rules(self) -> list[Rule]:
        found: list[Rule] = []
        for version, family in _FAMILY.items():
            async for message in await self._route.get_rules(family=family):
                action = _ACTIONS.get(message["action"])
                if message["family"] == family and action is not None:
                    found.append(_rule(message, 6 if version == 6 else 4, action))
        return found

    # Steps

    async def _steps(
        self, interface: str, index: int, addresses: tuple[Address, ...], routes: tuple[Route, ...]
    ) -> list[Step]:
        """New addresses, then routes (they may name a new source), then the deletions of addresses."""
        there = await self._addresses(interface, index)
        # What somebody takes away and brings back is his.
        self._untagged -= {
            one for one in self._untagged if one[0] == interface and one[1:] not in {a.key for a in there}
        }
        have = [replace(item, proto=mark.PROTO) if (interface, *item.key) in self._untagged else item for item in there]
        first = diff.addresses(have, addresses)
        second = diff.routes(await self._routes(interface, index), routes)
        made = [step for step in first if step.op != "delete"]
        return made + second + [step for step in first if step.op == "delete"]

    def _note(self, inverse: Inverse) -> None:
        text = json.dumps(inverse, sort_keys=True)
        if text not in self._recorded:
            self._record(inverse)
            self._recorded.add(text)

    async def _apply(self, step: Step, index: int) -> None:
        if step.inverse is not None:
            self._note(step.inverse)
        match step.item:
            case Address():
                verb = {"add": "add", "set": "replace", "delete": "delete"}[step.op]
                done = self._address(verb, step.item, index)
            case Route():
                verb = {"add": "add", "set": "replace", "delete": "del"}[step.op]
                done = self._write_route(verb, step.item, index)
            case Rule():
                done = self._rule("add" if step.op == "add" else "del", step.item)
        if step.op == "delete":
            await self._gone_is_fine(done)
        else:
            await done

    async def _gone_is_fine(self, done: Awaitable[Any]) -> None:
        try:
            await done
        except NetlinkError as error:
            if error.code not in GONE:
                raise

    async def _address(self, verb: str, item: Address, index: int) -> None:
        fields: dict[str, Any] = {
            "family": _FAMILY[diff.family_of(item)],
            "address": str(item.ip),
            "prefixlen": item.prefix,
        }
        if verb != "delete":
            flags = NOPREFIXROUTE if item.no_prefix_route else 0
            fields["IFA_FLAGS"] = flags | (NODAD if fields["family"] == socket.AF_INET6 else 0)
            fields["IFA_CACHEINFO"] = {
                "ifa_valid": FOREVER if item.valid is None else item.valid,
                "ifa_preferred": FOREVER if item.preferred is None else item.preferred,
            }
            if item.proto:
                fields["IFA_PROTO"] = item.proto
        await self._route.addr(verb, index=index, **fields)

    async def _write_route(self, verb: str, item: Route, index: int) -> None:
        fields: dict[str, Any] = {
            "family": _FAMILY[diff.family_of(item)], "dst": str(item.destination), "oif": index, "table": item.table,
            "proto": item.proto, "priority": item.metric, "type": item.type,
        }  # fmt: skip
        if item.gateway is not None:
            fields["gateway"] = str(item.gateway)
        if item.source is not None:
            fields["prefsrc"] = str(item.source)
        if item.onlink:
            fields["flags"] = ONLINK
        if diff.family_of(item) == 4:
            fields["scope"] = HOST_SCOPE if item.type == "local" else 0 if item.gateway else LINK_SCOPE
        await self._route.route(verb, **fields)

    async def _rule(self, verb: str, item: Rule) -> None:
        fields: dict[str, Any] = {
            "family": _FAMILY[item.family], "priority": item.priority, "action": _NUMBERS[item.action],
            "table": item.table, "FRA_PROTOCOL": item.proto,
        }  # fmt: skip
        if item.mask:
            fields |= {"fwmark": item.mark, "fwmask": item.mask}
        if item.action == "goto":
            fields["FRA_GOTO"] = item.target
        for name, key in (("source", "src"), ("destination", "dst")):
            if text := getattr(item, name):
                network = ip_network(text)
                fields |= {key: str(network.network_address), f"{key}_len": network.prefixlen}
        if item.iif:
            fields["FRA_IIFNAME"] = item.iif
        if item.oif:
            fields["FRA_OIFNAME"] = item.oif
        if item.uids:
            fields["FRA_UID_RANGE"] = item.uids.replace("-", ":")
        if item.port:
            fields["FRA_DPORT_RANGE"] = f"{item.port}:{item.port}"
        if item.invert:
            fields["flags"] = INVERT
        if item.suppress >= 0:
            fields["FRA_SUPPRESS_PREFIXLEN"] = item.suppress
        await self._route.rule(verb, **fields)


def _rule(message: Any, family: Literal[4, 6], action: RuleAction) -> Rule:
    """Of a pyroute2 RTM_NEWRULE message."""

    def prefix(key: str) -> str:
        text, length = message.get(f"FRA_{key.upper()}"), message[f"{key}_len"]
        return f"{text or ('0.0.0.0' if family == 4 else '::')}/{length}" if text or length else ""

    suppress, ports = message.get("FRA_SUPPRESS_PREFIXLEN"), message.get("FRA_DPORT_RANGE") or ""
    return Rule(
        family, message.get("FRA_PRIORITY") or 0, message.get("FRA_FWMARK") or 0, message.get("FRA_FWMASK") or 0,
        message.get("FRA_TABLE") or message["table"], message.get("FRA_PROTOCOL") or 0, action,
        message.get("FRA_GOTO") or 0, message.get("FRA_IIFNAME") or "", message.get("FRA_OIFNAME") or "",
        prefix("src"), prefix("dst"), (message.get("FRA_UID_RANGE") or "").replace(":", "-"),
        int(ports.partition(":")[0] or 0), bool(message["flags"] & INVERT),
        -1 if suppress in (None, FOREVER) else suppress,
    )  # fmt: skip


@asynccontextmanager
async def _errors(op: str) -> AsyncIterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise KernelError(op, error.code) from error
    except OSError as error:
        raise KernelError(op, error.errno or 0) from error
