"""What runs all the time in the home scenario: servers of the sites, of names and leases, and the proxies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.lab.topology import Listener, Service

if TYPE_CHECKING:
    from gateway.lab.scenario.home import Home, Site

SITE_PORTS = {"http": 80, "https": 443, "udp": 7, "quic": 443, "banner": 22}
SHADOWSOCKS_PORT, SHADOWSOCKS_2022_PORT = 8388, 8389
SHADOWSOCKS_METHOD, SHADOWSOCKS_2022_METHOD = "aes-128-gcm", "2022-blake3-aes-128-gcm"


def services(home: Home, programs: Mapping[str, str], renew: tuple[int, int]) -> list[Service]:
    """See ``home.topology``."""
    return [
        _names(home, "isp", programs, _dhcp(home, renew)),
        _names(home, "resolver", programs, ""),
        *(_site(site, programs) for site in home.sites),
        *_vps(home, programs),
        _banner("router", programs),
        _banner("lan1", programs),
        _banner("lan2", programs),
    ]


def _names(home: Home, host: str, programs: Mapping[str, str], more: str) -> Service:
    """dnsmasq: the records of the whole internet, and what ``more`` says."""
    records = [f"host-record={name},{four},{six}" for name, (four, six) in home.records.items()]
    base = ["no-resolv", "no-hosts", "local=/example/", "user=root", "pid-file=", "log-facility={folder}/log"]
    base += ["bind-dynamic", "log-queries", "cache-size=0"]
    text = "\n".join([*base, *records]) + "\n" + more
    command = (programs["dnsmasq"], "--keep-in-foreground", "--conf-file={folder}/dnsmasq.conf")
    return Service(host, "dnsmasq", command, {"dnsmasq.conf": text}, ready=(("udp", 53), ("tcp", 53)))


def _dhcp(home: Home, renew: tuple[int, int]) -> str:
    # The shortest lease of dnsmasq is two minutes; T1 and T2 (options 58, 59) make clients renew sooner.
    return "\n".join(
        [
            f"dhcp-range={home.pool[0]},{home.pool[1]},255.255.255.0,2m",
            "dhcp-authoritative",
            "dhcp-leasefile={folder}/leases",
            f"dhcp-option=option:router,{home.isp4}",
            f"dhcp-option=option:dns-server,{home.isp4}",
            "dhcp-option=option:domain-name,isp.example",
            f"dhcp-option-force=option:T1,{renew[0]}",
            f"dhcp-option-force=option:T2,{renew[1]}",
            "log-dhcp",
            "interface=wan",
            "interface=net",
            "no-dhcp-interface=net",
            "",
        ]
    )


def _site(site: Site, programs: Mapping[str, str]) -> Service:
    command = [programs["python"], "-m", "gateway.lab.server", "--site", site.host, "--shared", "{shared}"]
    command += ["--address", site.ipv4, "--address", site.ipv6]
    for name, port in SITE_PORTS.items():
        command += [f"--{name}", str(port)]
    ready = [_udp(port) if name in ("udp", "quic") else _tcp(port) for name, port in SITE_PORTS.items()]
    return Service(site.host, "site", tuple(command), ready=tuple(ready))


def _banner(host: str, programs: Mapping[str, str]) -> Service:
    """What must stay reachable where it is: a login service, and a page to forward a port to."""
    command = (programs["python"], "-m", "gateway.lab.server", "--site", host, "--shared", "{shared}")
    ports = ["--banner", "22"] if host == "router" else ["--banner", "22", "--http", "8080", "--udp", "7"]
    return Service(host, "login", (*command, *ports), ready=(("tcp", 22),))


def _vps(home: Home, programs: Mapping[str, str]) -> list[Service]:
    services = []
    if "ss-server" in programs:
        settings = {
            "server": [home.vps.ipv6, home.vps.ipv4],
            "server_port": SHADOWSOCKS_PORT,
            "password": home.shadowsocks_password,
            "method": SHADOWSOCKS_METHOD,
            "mode": "tcp_and_udp",
            "timeout": 60,
        }
        command = ("ss-server", programs["ss-server"], "-c")
        services.append(_proxy(command, json.dumps(settings), SHADOWSOCKS_PORT))
    if "xray" in programs:
        inbound = {
            "listen": "::",
            "port": SHADOWSOCKS_2022_PORT,
            "protocol": "shadowsocks",
            "settings": {
                "method": SHADOWSOCKS_2022_METHOD,
                "password": home.shadowsocks_2022_password,
                "network": "tcp,udp",
            },
        }
        # Without this rule Xray's freedom refuses addresses that it takes for private.
        freedom = {"protocol": "freedom", "settings": {"finalRules": [{"action": "allow"}]}}
        text = json.dumps({"log": {"loglevel": "info"}, "inbounds": [inbound], "outbounds": [freedom]})
        services.append(_proxy(("xray", programs["xray"]), text, SHADOWSOCKS_2022_PORT))
    return services


def _tcp(port: int) -> Listener:
    return "tcp", port


def _udp(port: int) -> Listener:
    return "udp", port


def _proxy(command: tuple[str, ...], config: str, port: int) -> Service:
    """``command`` is the service's name, the program and its options; the configuration file comes last."""
    name, *words = command
    ready = (_tcp(port), _udp(port))
    return Service("vps", name, (*words, "{folder}/config.json"), {"config.json": config}, ready)
