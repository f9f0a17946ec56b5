"""What the kernel and the installed programs can do: privileges, nftables, BPF, dnsmasq.

Nothing is changed: nft rules are dry runs (``nft -c``: the kernel builds the transaction and gives it up), the BPF
object is loaded and never attached. A kernel with modules may load the ones that a dry run asks for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gateway.core.errors import KernelError
from gateway.kernel import cgroup, tun
from gateway.kernel.bpf import offload
from gateway.kernel.bpf.loader import library
from gateway.kernel.bpf.process import KNOWN_LESS, KNOWN_NOTHING, load, netns_cookie
from gateway.kernel.probe.finding import TIMEOUT, Finding, capability, tool

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


def capabilities() -> Iterator[Finding]:
    has = {name: capability(number) for name, number in CAPABILITIES.items()}
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


def programs() -> Iterator[Finding]:
    has = tool("dnsmasq") is not None
    detail = "" if has else "no DHCP, router advertisements or names for the LAN"
    yield Finding("dnsmasq", has, detail, "" if has else "apt install dnsmasq-base", needed=False)


def tun_device() -> Iterator[Finding]:
    try:
        os.close(os.open(tun.PATH, os.O_RDWR | os.O_CLOEXEC))
        yield Finding("tun", True)
    except OSError as error:
        yield Finding("tun", False, f"{tun.PATH}: {error.strerror}", "CONFIG_TUN (modprobe tun)")
