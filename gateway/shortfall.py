"""What this host lacks for one configuration, a finding each: ``gateway check --host``. None of it stops ``run``.

Nothing is changed; ports are bound for a moment and let go.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from gateway.config.fields import as_list
from gateway.config.root import Config, Tagged
from gateway.core.errors import ConfigError
from gateway.kernel.probe import Finding, probe, tunnel
from gateway.kernel.probe.finding import parameter
from gateway.options import GatewayOptions
from gateway.tls.client import read
from gateway.uplink import owner


def shortfall(config: Config) -> Iterator[Finding]:
    """Only what is not well. A configuration without a ``gateway`` object asks nothing of the kernel but ports and, for
    a ``tun``, the device, nftables and what it names."""
    options = config.gateway
    alone = not isinstance(options, GatewayOptions)
    if isinstance(options, GatewayOptions):
        yield from (finding for finding in probe() if not finding.ok)
        yield from interfaces(options)
        yield from group(options)
    if any(inbound.type == "tun" for inbound in config.inbounds):
        yield from (finding for finding in tunnel(alone) if not finding.ok)
    yield from certificates(config)
    for inbound in config.inbounds:
        yield from ports(inbound)
        if inbound.type == "tun":
            yield from device(inbound)


def interfaces(options: GatewayOptions) -> Iterator[Finding]:
    """Interfaces that are named and not there, and uplinks on which another program asks for a lease."""
    there = {name: index for index, name in socket.if_nameindex()}
    named = [("uplink", one.interface) for one in options.uplinks]
    # A bridge with ports is ours to make.
    named += [("lan", name) for one in options.lans for name in (one.ports or [one.interface])]
    for role, name in named:
        if name not in there:
            yield Finding(f"{role} {name}", False, "there is no such interface; run waits for it")
    wanted = [one.interface for one in options.uplinks if one.dhcp4 is not None]
    asking = {name: there[name] for name in wanted if name in there}
    for name, other in owner.every(asking).items():
        yield Finding(f"uplink {name}", False, str(owner.LinkOwned(name, other)), other.release)


def group(options: GatewayOptions) -> Iterator[Finding]:
    """The cgroup that the process programs would be attached to."""
    path = options.kernel.cgroup
    if path and not os.path.isdir(path):
        yield Finding("cgroup", False, f"{path} is not a folder: process rules are judged in userspace", needed=False)


def certificates(config: Config) -> Iterator[Finding]:
    """Files of authorities that ``tls`` objects name and that cannot be used; ``run`` does not start without them."""
    for item in (*config.outbounds, *config.dns_servers):
        tls = getattr(item.options, "tls", None)
        if tls is not None and not tls.pem:
            try:
                read(config.directory, tls.certificate_path)
            except ConfigError as error:
                yield Finding(f"{item.type} {item.tag}", False, error.message)


def device(inbound: Tagged) -> Iterator[Finding]:
    """Of a ``tun``: a device name that another kind of interface has, interfaces that are named and not there, IPv6
    where the host has none."""
    name, options = f"tun {inbound.tag}", inbound.options
    there = {one for _, one in socket.if_nameindex()}
    wanted = options.interface_name
    # A tun may be the one of a run that goes on, or made beforehand to be taken over.
    if wanted in there and not Path("/sys/class/net", wanted, "tun_flags").exists():
        yield Finding(name, False, f"{wanted} is there and is no tun: choose another interface_name")
    for field in ("include_interface", "exclude_interface"):
        for one in as_list(getattr(options, field)):
            if one not in there and one != wanted:
                detail = f"{field}: there is no interface {one}; it counts once it is there"
                yield Finding(name, False, detail, needed=False)
    if 6 in options.families and parameter("net/ipv6/conf/default/disable_ipv6") != "0":
        remedy = "sysctl -w net.ipv6.conf.default.disable_ipv6=0"
        yield Finding(name, False, "it has an IPv6 address, and IPv6 is switched off for new interfaces", remedy)


def ports(inbound: Tagged) -> Iterator[Finding]:
    """The inbound's address and port, if another has them or the host does not."""
    port = getattr(inbound.options, "listen_port", 0)
    if not port:
        return
    host = getattr(inbound.options, "listen", "") or "::"
    asked = str(getattr(inbound.options, "network", "") or "")
    kinds = {"tcp": (socket.SOCK_STREAM,), "udp": (socket.SOCK_DGRAM,)}.get(asked, _kinds(inbound.type))
    name = f"{inbound.type} {inbound.tag}"
    for kind in kinds:
        refused = bind(host, port, kind)
        if refused:
            network = "tcp" if kind == socket.SOCK_STREAM else "udp"
            reason = "is taken" if refused == errno.EADDRINUSE else f"cannot be had: {os.strerror(refused)}"
            yield Finding(name, False, f"{network} port {port} of {host} {reason}", _remedy(refused))


def _kinds(type_: str) -> tuple[socket.SocketKind, ...]:
    """Where the options leave it open; the UDP of socks and mixed has ports of its own."""
    both = type_ in ("tproxy", "direct", "shadowsocks")
    return (socket.SOCK_STREAM, socket.SOCK_DGRAM) if both else (socket.SOCK_STREAM,)


def _remedy(refused: int) -> str:
    return {errno.EADDRINUSE: "ss -lntup", errno.EACCES: "run as root"}.get(refused, "")


def bind(host: str, port: int, kind: socket.SocketKind) -> int:
    """0 where the port is free, else the errno of the refusal."""
    try:
        ip = ip_address(host)
    except ValueError:
        return errno.EINVAL
    try:
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, kind) as sock:
            if kind == socket.SOCK_STREAM:
                # As the inbound does: connections of a former run in TIME_WAIT are no hindrance.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            if kind == socket.SOCK_STREAM:
                sock.listen(1)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
