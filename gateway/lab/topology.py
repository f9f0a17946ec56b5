"""What a laboratory consists of: hosts, links and services as frozen data. Pure.

Nothing here touches the system; :mod:`gateway.lab.lab` realises a :class:`Topology` in network namespaces.

::

    Topology ── hosts     Host(name, bridges, addresses, routes, ...)   one network namespace each
             ├─ links     Link(End(host, interface), End(...))          a veth pair between two hosts
             └─ services  Service(host, name, command, files, ready)    a program that runs all the time
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Listener = tuple[Literal["tcp", "udp"], int]


@dataclass(frozen=True)
class Bridge:
    """A bridge on a host; ``ports`` are interface names of that host, made by links."""

    name: str
    ports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """``target`` is a prefix or ``default`` or ``default6``; ``via`` a next hop; ``interface`` where it is needed."""

    target: str
    via: str
    interface: str = ""


@dataclass(frozen=True)
class Host:
    """One network namespace.

    ``addresses``: interface name -> addresses with prefix length (``198.51.100.7/24``). ``sysctls``: names below
    ``/proc/sys/net`` with slashes, set before any interface exists. ``nameservers`` go to the host's resolv.conf.
    ``quick_ipv6`` turns duplicate address detection off, so that link-local addresses work at once.
    """

    name: str
    bridges: tuple[Bridge, ...] = ()
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    nameservers: tuple[str, ...] = ()
    quick_ipv6: bool = True


@dataclass(frozen=True)
class End:
    """One end of a link: an interface of a host. ``mac`` empty lets the kernel choose."""

    host: str
    interface: str
    mac: str = ""
    mtu: int = 1500


@dataclass(frozen=True)
class Link:
    """A veth pair; both ends are set up."""

    left: End
    right: End


@dataclass(frozen=True)
class Service:
    """A program that runs on a host as long as the lab stands.

    In ``command`` and in the texts of ``files``, ``{folder}`` is the service's own folder, where the files are
    written first, and ``{shared}`` one folder for the whole lab. ``ready``: the sockets that must be there before
    the lab counts as up.
    """

    host: str
    name: str
    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    ready: tuple[Listener, ...] = ()


@dataclass(frozen=True)
class Topology:
    """A whole laboratory. ``shared`` are files (name -> text) that every service may read."""

    name: str
    hosts: tuple[Host, ...]
    links: tuple[Link, ...] = ()
    services: tuple[Service, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
