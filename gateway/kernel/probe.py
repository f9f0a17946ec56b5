"""What this host can do for the gateway, one finding each: the record behind ``doctor`` and ``check --host``.

Nothing is changed: nft rules are dry runs (``nft -c``: the kernel builds the transaction and gives it up), the BPF
object is loaded and never attached. A kernel with modules may load the ones that a dry run asks for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core.errors import KernelError
from gateway.kernel import cgroup, mark, tun
from gateway.kernel.bpf import offload
from gateway.kernel.bpf.loader import library
from gateway.kernel.bpf.process import KNOWN_LESS, KNOWN_NOTHING, load, netns_cookie

PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
BTF = Path("/sys/kernel/btf/vmlinux")
BTF_OPTION = "a kernel with CONFIG_DEBUG_INFO_BTF=y"
REMEDIES = {
    "open libbpf.so.1": "apt install libbpf1",
    "open process.bpf.o": "make -C bpf",
    "open offload.bpf.o": "make -C bpf",
    offload.NO_TCX: "Linux 6.6",
}
"""By the step at which the CO-RE loader failed."""
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
TABLES = re.compile(r"inet gateway(_base|_tun_\d+)?")
"""Our own: family and name."""
Accept = tuple[str, int, int]
"""What a rule asks of a mark: "meta mark" or "ct mark", mask, value."""
PASS: dict[str, tuple[Accept, ...]] = {
    "input": (("meta mark", mark.ROUTE, mark.ROUTE), ("ct mark", mark.CLASS, mark.NAMES)),
    "forward": (("ct mark", mark.CLASS, mark.DIRECT),),
    "output": (("meta mark", mark.SOCKET, mark.OWN),),
}
"""By hook: what is delivered to our listeners, captured queries, direct flows, what our own sockets send."""
TIMEOUT = 20.0
"""Seconds that one command may take; another nft in a tight loop can hold ours up."""

NFT = {
    "tproxy": "type filter hook prerouting priority mangle; meta l4proto tcp tproxy ip to :1",
    "socket": "type filter hook prerouting priority mangle; socket transparent 1 counter",
    "fib": "type filter hook prerouting priority mangle; fib daddr type local counter",
    "ct": "type filter hook prerouting priority mangle; ct state new ct mark set 1",
    "redirect": "type nat hook prerouting priority dstnat; udp dport 53 redirect to :1",
    "masquerade": "type nat hook postrouting priority srcnat; masquerade",
}
KERNEL_OPTIONS = {
    "tproxy": "CONFIG_NFT_TPROXY (modprobe nft_tproxy)",
    "socket": "CONFIG_NFT_SOCKET (modprobe nft_socket)",
    "fib": "CONFIG_NFT_FIB_INET (modprobe nft_fib_inet)",
    "ct": "CONFIG_NFT_CT (modprobe nft_ct)",
    "redirect": "CONFIG_NFT_REDIR (modprobe nft_redir)",
    "masquerade": "CONFIG_NFT_MASQ (modprobe nft_masq)",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``remedy`` is a command or a kernel option, empty where all is well or nothing helps.
    ``needed`` False: the gateway does without it, ``detail`` says at what cost."""

    name: str
    ok: bool
    detail: str = ""
    remedy: str = ""
    needed: bool = True


def probe() -> tuple[Finding, ...]:
    """All findings. Never raises: what could not be looked at is a finding that is not ok."""
    return tuple(
        finding
        for look in (
            capabilities,
            nft_features,
            bpf,
            conntrack,
            forwarding,
            ip_rules,
            foreign_chains,
            foreign_policies,
            programs,
        )
        for finding in _guarded(look)
    )


def tunnel() -> tuple[Finding, ...]:
    """Findings on what a ``tun`` inbound needs."""
    found = (finding for look in (capabilities, nft_features, device) for finding in _guarded(look))
    return tuple(finding for finding in found if finding.needed)


def device() -> Iterator[Finding]:
    try:
        os.close(os.open(tun.PATH, os.O_RDWR | os.O_CLOEXEC))
        yield Finding("tun", True)
    except OSError as error:
        yield Finding("tun", False, f"{tun.PATH}: {error.strerror}", "CONFIG_TUN (modprobe tun)")


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (OSError, KernelError, ValueError, subprocess.SubprocessError) as error:
        yield Finding(look.__name__.replace("_", "-"), False, f"could not be looked at: {error}")


def tool(name: str) -> str | None:
    """Where a program is, also where PATH lacks the sbin folders."""
    return shutil.which(name) or shutil.which(name, path=PATH)


def capabilities() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text()
    held = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    has = {name: bool(held >> bit & 1) for name, bit in CAPABILITIES.items()}
    # CAP_SYS_ADMIN stands for both, as it did before Linux 5.8.
    has["CAP_BPF"] |= has["CAP_SYS_ADMIN"]
    has["CAP_PERFMON"] |= has["CAP_SYS_ADMIN"]
    for name, needed in (("CAP_NET_ADMIN", True), ("CAP_NET_RAW", True), ("CAP_BPF", False), ("CAP_PERFMON", False)):
        yield Finding(name, has[name], "" if has[name] else "not held", "" if has[name] else "run as root", needed)


def _dry_run(text: str) -> str:
    """ "" where the kernel would take the ruleset, else the first line of its refusal."""
    program = tool("nft")
    if program is None:
        return "nft is not installed"
    done = subprocess.run([program, "-c", "-f", "-"], input=text, capture_output=True, text=True, timeout=TIMEOUT)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["refused"])[0]


def nft_features() -> Iterator[Finding]:
    """Each feature beside a control line in the same table: only a control that passes makes a refusal mean
    something."""
    refused = _dry_run("table inet gateway_probe { chain c { counter; }; }")
    yield Finding("nft", not refused, refused, "apt install nftables" if refused else "")
    if refused:
        return
    for name, chain in NFT.items():
        refused = _dry_run(f"table inet gateway_probe {{ chain c {{ {chain}; }}; }}")
        yield Finding(f"nft-{name}", not refused, refused, KERNEL_OPTIONS[name] if refused else "")
    refused = _dry_run("table inet gateway_probe { flags owner; chain c { counter; }; }")
    cost = f"{refused}; the steering table is open to others and goes by a helper process" if refused else ""
    yield Finding("nft-owner", not refused, cost, "Linux 5.12 and nftables 1.0" if refused else "", needed=False)


def bpf() -> Iterator[Finding]:
    """cgroup2, BTF, libbpf, the network namespace's cookie, and a load of the process programs, CO-RE or BCC's, and of
    those that offload flows."""
    try:
        yield Finding("cgroup2", True, str(cgroup.mount_point()), needed=False)
    except KernelError as error:
        yield Finding("cgroup2", False, str(error), "mount -t cgroup2 none /sys/fs/cgroup", needed=False)
    has = BTF.exists()
    yield Finding("btf", has, "" if has else "no CO-RE programs", "" if has else BTF_OPTION, needed=False)
    try:
        library()
        yield Finding("libbpf", True, needed=False)
    except KernelError as error:
        yield Finding("libbpf", False, f"no CO-RE programs ({error})", REMEDIES[error.op], needed=False)
    try:
        yield Finding("netns-cookie", bool(netns_cookie()), needed=False)
    except KernelError as error:
        yield Finding("netns-cookie", False, str(error), "Linux 5.14", needed=False)
    yield _process_programs()
    yield _offload_programs()


def _process_programs() -> Finding:
    try:
        programs, refused, instead = load()
    except KernelError as error:
        remedy = f"{_remedy(str(error))}, or apt install python3-bpfcc"
        return Finding("bpf-process", False, f"{KNOWN_NOTHING}\n{error}", remedy, needed=False)
    programs.close()
    costs = [f"{KNOWN_LESS} ({instead})"] if instead else []
    if refused:
        costs.append(f"without {', '.join(refused)}: an unconnected UDP socket keeps the mark of its birth")
    remedy = _remedy(instead) if instead else "Linux 5.12" if refused else ""
    return Finding("bpf-process", not costs, "; ".join(costs), remedy, needed=False)


def _offload_programs() -> Finding:
    try:
        offload.load().close()
    except KernelError as error:
        detail = f"each packet of a direct flow goes the kernel's long way\n{error}"
        return Finding("flow-offload", False, detail, _remedy(str(error)), needed=False)
    return Finding("flow-offload", True, needed=False)


def _remedy(refusal: str) -> str:
    """What lets the CO-RE object be loaded."""
    return next((remedy for step, remedy in REMEDIES.items() if step in refusal), BTF_OPTION)


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None


def conntrack() -> Iterator[Finding]:
    limit = _sysctl("net/netfilter/nf_conntrack_max")
    if limit is None:
        yield Finding("conntrack", False, "the kernel has no connection tracking here", "modprobe nf_conntrack")
        return
    small = int(limit) < 16384
    yield Finding(
        "conntrack", not small, f"nf_conntrack_max {limit}",
        "sysctl -w net.netfilter.nf_conntrack_max=65536" if small else "", needed=False,
    )  # fmt: skip


def forwarding() -> Iterator[Finding]:
    """Settings that drop or divert what the gateway forwards."""
    strict = sorted(
        path.parent.name
        for path in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter")
        if path.read_text().strip() == "1"
    )
    yield Finding(
        "rp-filter", not strict, f"strict on {', '.join(strict)}: several uplinks need loose" if strict else "",
        "; ".join(f"sysctl -w net/ipv4/conf/{name}/rp_filter=2" for name in strict), needed=False,
    )  # fmt: skip
    for family in ("iptables", "ip6tables"):
        name = f"net/bridge/bridge-nf-call-{family}"
        on = _sysctl(name) == "1"
        detail = "bridged frames pass the IP hooks: tproxy sees them twice" if on else ""
        yield Finding(name.rpartition("/")[2], not on, detail, f"sysctl -w {name}=0" if on else "")


def ip_rules() -> Iterator[Finding]:
    """Foreign ip rules that read the byte of the mark which is ours."""
    program = tool("ip")
    if program is None:
        yield Finding("ip-rules", False, "ip is not installed", "apt install iproute2", needed=False)
        return
    found = []
    for family in ("-4", "-6"):
        done = subprocess.run(
            [program, family, "-j", "rule"], capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
        found += [(family, rule) for rule in json.loads(done.stdout or "[]") if overlaps(rule)]
    detail = "; ".join(f"{family} priority {rule.get('priority')} fwmark {rule['fwmark']}" for family, rule in found)
    remedy = "; ".join(f"ip {family} rule del priority {rule.get('priority')}" for family, rule in found)
    yield Finding("ip-rules", not found, detail and f"{detail}: bits 24-31 are the gateway's", remedy)


def overlaps(rule: dict[str, Any]) -> bool:
    """Does an entry of ``ip -j rule`` test a bit of our byte? Not where it is our own rule."""
    own = (rule.get("priority") == mark.RULE_PRIORITY, rule.get("protocol") == str(mark.TUN_PROTO))
    if "fwmark" not in rule or any(own):
        return False
    mask = int(rule.get("fwmask", "0xffffffff"), 16)
    # A test of the whole mark for a value below bit 24 fails on each packet that we mark.
    return bool(mask & mark.BYTE)


def _ruleset() -> list[dict[str, Any]]:
    """``nft -j list ruleset``; empty without nft."""
    program = tool("nft")
    if program is None:
        return []
    done = subprocess.run(
        [program, "-j", "list", "ruleset"], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout).get("nftables", [])
    return found


def foreign_chains() -> Iterator[Finding]:
    """Rules of others that divert traffic too."""
    found = diverting(_ruleset())
    remedy = "; ".join(
        f"nft delete table {family} {table}" for family, table in dict.fromkeys(key[:2] for key in found)
    )
    detail = ", ".join(f"{family} {table} {chain}" for family, table, chain in found)
    yield Finding("foreign-chains", not found, detail and f"{detail}: tproxy or redirect beside ours", remedy)


def diverting(objects: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(family, table, chain) of each foreign chain of ``nft -j list ruleset`` with a tproxy or redirect."""
    found: dict[tuple[str, str, str], None] = {}
    for entry in objects:
        rule = entry.get("rule")
        if not rule or _is_own(rule):
            continue
        if any(
            key in ("tproxy", "redirect") for part in rule.get("expr", []) if isinstance(part, dict) for key in part
        ):
            found[(rule["family"], rule["table"], rule["chain"])] = None
    return list(found)


def _is_own(entry: dict[str, Any]) -> bool:
    return TABLES.fullmatch(f"{entry['family']} {entry['table']}") is not None


def foreign_policies() -> Iterator[Finding]:
    """Chains of others that drop what they do not know (firewalld, fw4, a server's own firewall). Each chain of a hook
    has its say; that ours accepts is no help."""
    found = dropping(_ruleset())
    detail = ", ".join(f"{family} {table} {chain}" for family, table, chain, _ in found)
    remedy = "; ".join(
        f"nft insert rule {family} {table} {chain} {key} & {mask:#010x} == {value:#010x} accept"
        for family, table, chain, missing in found
        for key, mask, value in missing
    )
    yield Finding("foreign-policies", not found, detail and f"{detail}: may drop what the gateway lets pass", remedy)


def dropping(objects: list[dict[str, Any]]) -> list[tuple[str, str, str, tuple[Accept, ...]]]:
    """(family, table, chain, accepts that it lacks) of each foreign chain of ``nft -j list ruleset`` whose policy is
    drop."""
    accepts: dict[tuple[str, str, str], set[Accept]] = {}
    for entry in objects:
        if rule := entry.get("rule"):
            place = (rule["family"], rule["table"], rule["chain"])
            accepts.setdefault(place, set()).update(_accepted(rule.get("expr", [])))
    found = []
    for entry in objects:
        chain = entry.get("chain")
        if not chain or chain.get("policy") != "drop" or chain["family"] not in ("inet", "ip", "ip6"):
            continue
        place = (chain["family"], chain["table"], chain["name"])
        missing = tuple(one for one in PASS.get(chain.get("hook", ""), ()) if one not in accepts.get(place, ()))
        if missing and not _is_own(chain):
            found.append((*place, missing))
    return found


def _accepted(expr: list[Any]) -> Iterator[Accept]:
    """The mark that a rule accepts, where it asks for nothing else."""
    match expr:
        case [{"match": {"op": "==", "left": {"&": [dict(what), int(mask)]}, "right": int(value)}}, {"accept": _}]:
            pass
        case [{"match": {"op": "==", "left": dict(what), "right": {"prefix": {"addr": int(value), "len": int(bits)}}}},
              {"accept": _}]:  # fmt: skip
            mask = 0xFFFFFFFF << 32 - bits & 0xFFFFFFFF  # how nft lists a mask of leading ones
        case _:
            return
    for kind in ("meta", "ct"):
        if what == {kind: {"key": "mark"}}:
            yield f"{kind} mark", mask, value


def programs() -> Iterator[Finding]:
    has = tool("dnsmasq") is not None
    detail = "" if has else "no DHCP, router advertisements or names for the LAN"
    yield Finding("dnsmasq", has, detail, "" if has else "apt install dnsmasq-base", needed=False)
