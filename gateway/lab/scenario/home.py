"""A home network and its internet, as data.

::

    lan1 ──┐                                    ┌─ site1 ... site5   HTTP, HTTPS, HTTP/3, UDP echo, banner
    lan2 ──┼─ [lan] router [wan] ── [wan] isp ──┼─ resolver          a public DNS server, in TLS too
    lan3 ──┤                        DHCP, DNS   └─ vps               Shadowsocks (libev); its 2022, Trojan, VLESS (Xray)
    inner ─┘
      └─ guest

The lab gives addresses to everything but the router: those are the gateway's work. :func:`draw` draws names, addresses
and secrets, all of documentation ranges (RFC 5737, RFC 3849, RFC 2606) but those of the LAN and of what is behind
inner; :func:`topology` makes the laboratory of them. IPv6 is routed: the isp sends ``lan6`` (a /64) to ``router6`` on
the WAN. ``inner`` forwards for ``guest``, of whose network nobody else knows: no answer finds the way back unless
inner dials in its own name. A second cable from the isp can be plugged in later (:func:`second_link`).
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.lab.certificate import authority
from gateway.lab.scenario.services import services
from gateway.lab.topology import Bridge, End, Host, Link, Route, Topology

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeio"]
LAN = ("lan1", "lan2", "lan3", "inner")
SECOND = ("192.0.2.8", "192.0.2.9")
"""Ends of the second cable, router and isp: a /31 out of the WAN's network (RFC 3021)."""


@dataclass(frozen=True)
class Site:
    """An internet host: its lab name, its addresses, and the domain names that lead to it."""

    host: str
    ipv4: str
    ipv6: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Home:
    """All that was drawn. Addresses are texts without a prefix length, networks with one.

    ``lan4``/``lan6`` are the LAN's networks, ``router_lan4``/``router_lan6`` the gateway's addresses in them,
    ``router_wan6`` its static IPv6 on the WAN with ``isp6`` as next hop; IPv4 on the WAN comes by DHCP out of
    ``pool``, with ``isp4`` as router and name server. The last site has two names for its one pair of addresses.
    ``inner_guest4``/``inner_guest6`` are inner's addresses towards guest, ``second6`` the second cable's IPv6 ends.
    """

    lan4: str
    lan6: str
    router_lan4: str
    router_lan6: str
    lan1: Site
    lan2: Site
    lan3: Site
    lan3_mac: str
    inner: Site
    guest: Site
    inner_guest4: str
    inner_guest6: str
    wan4: str
    wan6: str
    isp4: str
    isp6: str
    pool: tuple[str, str]
    router_wan6: str
    second6: tuple[str, str]
    sites: tuple[Site, ...]
    resolver: Site
    vps: Site
    shadowsocks_password: str
    shadowsocks_2022_password: str
    trojan_password: str
    vless_uuid: str
    wan_mac: str

    @property
    def inside(self) -> tuple[Site, ...]:
        """The hosts of the LAN and what is behind them."""
        return self.lan1, self.lan2, self.lan3, self.inner, self.guest

    @property
    def secret_names(self) -> tuple[str, str]:
        """Names that the resolver tells over TLS and over HTTPS alone, both of the second site."""
        return f"dot.{self.resolver.names[0]}", f"doh.{self.resolver.names[0]}"

    @property
    def records(self) -> Mapping[str, tuple[str, str]]:
        """Domain name -> (IPv4, IPv6) of every site, the resolver and the VPS."""
        return {name: (s.ipv4, s.ipv6) for s in (*self.sites, self.resolver, self.vps) for name in s.names}


def draw(chance: random.Random, sites: int = 5) -> Home:
    """Names, addresses and secrets; the same generator state draws the same home."""

    def word() -> str:
        return "".join(chance.choice(SYLLABLES) for _ in range(3)) + str(chance.randrange(10, 100))

    third = chance.randrange(10, 250)
    lan, behind = f"192.168.{third}", f"192.168.{third + 1}"
    block = f"2001:db8:{chance.randrange(0x1000, 0xFFFF):x}"
    low, high = chance.sample(range(2, 250), sites + 2), chance.sample(range(0x100, 0xFFFF), sites + 2)
    # Half of the internet is in each of two ranges.
    fours = [f"{'198.51.100' if number % 2 else '203.0.113'}.{last}" for number, last in enumerate(low)]
    sixes = [f"{block}:f::{last:x}" for last in high]
    names: list[tuple[str, ...]] = [(f"www.{word()}.example",) for _ in range(sites + 2)]
    names[sites - 1] += (f"cdn.{word()}.example",)
    hosts = [*(f"site{number + 1}" for number in range(sites)), "resolver", "vps"]
    made = tuple(Site(*parts) for parts in zip(hosts, fours, sixes, names, strict=True))
    return Home(
        lan4=f"{lan}.0/24",
        lan6=f"{block}:a::/64",
        router_lan4=f"{lan}.1",
        router_lan6=f"{block}:a::1",
        lan1=Site("lan1", f"{lan}.{chance.randrange(10, 50)}", f"{block}:a::{chance.randrange(0x10, 0x50):x}"),
        lan2=Site("lan2", f"{lan}.{chance.randrange(50, 90)}", f"{block}:a::{chance.randrange(0x50, 0x90):x}"),
        lan3=Site("lan3", f"{lan}.{chance.randrange(90, 95)}", f"{block}:a::{chance.randrange(0x90, 0x95):x}"),
        lan3_mac="02:" + ":".join(f"{byte:02x}" for byte in chance.randbytes(5)),
        inner=Site("inner", f"{lan}.{chance.randrange(95, 100)}", f"{block}:a::{chance.randrange(0x95, 0x100):x}"),
        guest=Site("guest", f"{behind}.{chance.randrange(10, 250)}", f"{block}:b::{chance.randrange(0x10, 0xFFFF):x}"),
        inner_guest4=f"{behind}.1",
        inner_guest6=f"{block}:b::1",
        wan4="192.0.2.0/24",
        wan6=f"{block}:e::/64",
        isp4="192.0.2.1",
        isp6=f"{block}:e::1",
        pool=("192.0.2.100", "192.0.2.199"),
        router_wan6=f"{block}:e::{chance.randrange(0x10, 0xFFFF):x}",
        second6=(f"{block}:d::1", f"{block}:d::2"),
        sites=made[:sites],
        resolver=made[sites],
        vps=made[sites + 1],
        shadowsocks_password=chance.randbytes(12).hex(),
        shadowsocks_2022_password=base64.b64encode(chance.randbytes(16)).decode(),
        wan_mac="02:" + ":".join(f"{byte:02x}" for byte in chance.randbytes(5)),
        trojan_password=chance.randbytes(12).hex(),
        vless_uuid=str(uuid.UUID(bytes=chance.randbytes(16), version=4)),
    )


def topology(
    home: Home,
    programs: Mapping[str, str],
    now: datetime.datetime,
    *,
    renew: tuple[int, int] = (5, 12),
    uplink: bool = True,
) -> Topology:
    """The laboratory of ``home``.

    ``programs``: executables ``python dnsmasq ss-server xray unbound``; what has no program is left out.
    ``renew`` is what the DHCP server says for T1 and T2, in seconds. ``uplink`` False leaves the cable of the WAN
    out; plug :func:`uplink_link` in later.
    """
    every = (*home.sites, home.resolver, home.vps)
    names, addresses = [*home.records], [text for site in every for text in (site.ipv4, site.ipv6)]
    ports = tuple(f"to-{site.host}" for site in every)
    links = [Link(End("isp", f"to-{site.host}"), End(site.host, "eth0")) for site in every]
    macs = {"lan3": home.lan3_mac}
    links += [Link(End("router", f"to-{name}"), End(name, "eth0", macs.get(name, ""))) for name in LAN]
    links.append(Link(End("inner", "guests"), End("guest", "eth0")))
    if uplink:
        links.append(uplink_link(home))
    hosts = [
        Host(
            "router",
            bridges=(Bridge("lan", tuple(f"to-{name}" for name in LAN)),),
            # As on a machine without br_netfilter: else tproxy would see the LAN's packets inside the bridge.
            sysctls={"bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0"},
            # Until the gateway runs, a router has no resolver but its own.
            nameservers=("127.0.0.1",),
        ),
        _isp(home, ports),
        *(_lan_host(home, site) for site in (home.lan1, home.lan2, home.lan3)),
        _inner(home),
        _guest(home),
        *(_internet_host(home, site) for site in every),
    ]
    return Topology(
        "home", tuple(hosts), tuple(links), tuple(services(home, programs, renew)), authority(names, addresses, now)
    )


def uplink_link(home: Home) -> Link:
    """The cable between the router and the isp."""
    return Link(End("router", "wan", mac=home.wan_mac), End("isp", "wan"))


def second_link(home: Home) -> Link:
    """Another cable between them. Its end at the isp gets its addresses, the router's is left alone."""
    return Link(End("router", "wan2"), End("isp", "wan2"))


def _length(network: str) -> str:
    return "/" + network.partition("/")[2]


def _isp(home: Home, ports: tuple[str, ...]) -> Host:
    inside = str(ipaddress.ip_network(f"{home.vps.ipv6}/64", strict=False)[1])
    return Host(
        "isp",
        bridges=(Bridge("net", ports),),
        addresses={
            "net": ("198.51.100.1/24", "203.0.113.1/24", f"{inside}/64"),
            "wan": (home.isp4 + _length(home.wan4), home.isp6 + _length(home.wan6)),
            "wan2": (f"{SECOND[1]}/31", f"{home.second6[1]}/64"),
        },
        routes=(Route(home.lan6, home.router_wan6, "wan"),),
        sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"},
        nameservers=("127.0.0.1",),
    )


def _internet_host(home: Home, site: Site) -> Host:
    gateway4 = site.ipv4.rpartition(".")[0] + ".1"
    gateway6 = str(ipaddress.ip_network(f"{site.ipv6}/64", strict=False)[1])
    return Host(
        site.host,
        addresses={"eth0": (f"{site.ipv4}/24", f"{site.ipv6}/64")},
        routes=(Route("default", gateway4), Route("default6", gateway6)),
        nameservers=(home.resolver.ipv4,),
    )


def _lan_host(home: Home, site: Site) -> Host:
    return Host(
        site.host,
        addresses={"eth0": (site.ipv4 + _length(home.lan4), site.ipv6 + _length(home.lan6))},
        routes=(Route("default", home.router_lan4), Route("default6", home.router_lan6)),
        nameservers=(home.router_lan4,),
    )


def _inner(home: Home) -> Host:
    """A host of the LAN, and the router of the guest."""
    plan = _lan_host(home, home.inner)
    addresses = {**plan.addresses, "guests": (f"{home.inner_guest4}/24", f"{home.inner_guest6}/64")}
    return replace(plan, addresses=addresses, sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})


def _guest(home: Home) -> Host:
    return Host(
        "guest",
        addresses={"eth0": (f"{home.guest.ipv4}/24", f"{home.guest.ipv6}/64")},
        routes=(Route("default", home.inner_guest4), Route("default6", home.inner_guest6)),
        # Root may have echo sockets (icmp(7)).
        sysctls={"ipv4/ping_group_range": "0 0"},
        nameservers=(home.resolver.ipv4,),
    )
