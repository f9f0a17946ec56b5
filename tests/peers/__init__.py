"""The foreign programs that tests and benchmarks talk to: the one place that pins and installs them.

``peers.path("sing-box")`` gives an executable, fetched or built on first use into ``~/.cache/gateway/peers``, keyed by
version. Debian packages are unpacked, never installed; wheels are pinned by SHA-256; a Go module has a folder of its
own here, whose ``go.sum`` pins the whole tree of its dependencies. What the demo needs too is in
``gateway/lab/peer.py``, which has the mechanism.

From a shell: ``python -m tests.peers NAME...`` prints the paths.
"""

from __future__ import annotations

from pathlib import Path

from gateway.lab import peer
from gateway.lab.peer import Debian, PeerMissing, Source
from tests.peers.go import Go

__all__ = ["SOURCES", "PeerMissing", "path"]

SING_BOX = "1.12.12"
_TAGS = (
    "with_gvisor,with_quic,with_dhcp,with_wireguard,with_utls,with_acme,"
    "with_clash_api,with_v2ray_api,with_tailscale,with_grpc"
)
SOURCES: dict[str, Source] = {
    **peer.SOURCES,
    "sing-box": Go(
        "sing-box",
        SING_BOX,
        folder="sing_box",
        package="github.com/sagernet/sing-box/cmd/sing-box",
        options=("-tags", _TAGS),
        # -checklinkname=0: sing-box links to private names of the standard library.
        link=f"-s -w -checklinkname=0 -X github.com/sagernet/sing-box/constant.Version={SING_BOX}",
    ),
    "danted": Debian("dante-server", ("danted",)),
    "microsocks": Debian("microsocks", ("microsocks",)),
    "dnsperf": Debian("dnsperf", ("dnsperf",)),
    "ethtool": Debian("ethtool", ("ethtool",)),
    "iptables-nft": Debian(
        "iptables",
        tuple(f"{name}-nft{suffix}" for name in ("iptables", "ip6tables") for suffix in ("", "-restore", "-save")),
    ),
    "iperf3": Debian("iperf3", ("iperf3",)),
    "tcpdump": Debian("tcpdump", ("tcpdump",)),
    "wrk": Debian("wrk", ("wrk",)),
    "kea-dhcp4": Debian("kea-dhcp4-server", ("kea-dhcp4",)),
    "dhclient": Debian("isc-dhcp-client", ("dhclient",)),
    "dhcpcd": Debian("dhcpcd-base", ("dhcpcd",)),
    "dhcpd": Debian("isc-dhcp-server", ("dhcpd",)),
    "dnsdist": Debian("dnsdist", ("dnsdist",)),
    "sshd": Debian("openssh-server", ("sshd",)),
    "ssh": (_ssh := Debian("openssh-client", ("ssh", "ssh-keygen"))),
    "ssh-keygen": _ssh,
    "dig": Debian("bind9-dnsutils", ("dig",)),
    "nginx": Debian("nginx", ("nginx",)),
    "tinyproxy": Debian("tinyproxy-bin", ("tinyproxy",)),
    "qemu-system-x86_64": Debian("qemu-system-x86", ("qemu-system-x86_64",)),
    "systemd-analyze": Debian("systemd", ("systemd-analyze",)),
    "debootstrap": Debian("debootstrap", ("debootstrap",)),
}


def path(name: str) -> Path:
    """The executable of the foreign program ``name``; raises :class:`PeerMissing` with the step that failed.

    ``udhcpd`` and ``udhcpc`` are ``busybox`` under those names.
    """
    if name in ("udhcpd", "udhcpc"):
        busybox = path("busybox")
        applet = busybox.parent / name
        if not applet.exists():
            with peer.locked(busybox.parent.parent):
                peer.script(applet, f'exec "{busybox}" {name} "$@"\n')
        return applet
    return peer.path(name, SOURCES)
