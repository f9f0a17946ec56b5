"""What runs all the time in the home scenario: servers of the sites, of names and leases, and the proxies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.lab.topology import Listener, Service

if TYPE_CHECKING:
    from gateway.lab.scenario.home import Home, Site

SITE_PORTS = {"http": 80, "https": 443, "udp": 7, "quic": 443, "banner": 22}
SHADOWSOCKS_PORT, SHADOWSOCKS_2022_PORT = 8388, 8389
TROJAN_PORT, VLESS_PORT = 8443, 8444
SHADOWSOCKS_METHOD, SHADOWSOCKS_2022_METHOD = "aes-128-gcm", "2022-blake3-aes-128-gcm"


def services(home: Home, programs: Mapping[str, str], renew: tuple[int, int]) -> list[Service]:
    """See ``home.topology``."""
    return [
        _names(home, "isp", programs, _dhcp(home, renew)),
        _names(home, "resolver", programs, ""),
        *(_site(site, programs) for site in home.sites),
        *_vps(home, programs),
        *_encrypted_names(home, programs),
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


def _encrypted_names(home: Home, programs: Mapping[str, str]) -> list[Service]:
    """unbound beside the resolver's dnsmasq: DNS over TLS and over HTTPS, of names that dnsmasq does not know."""
    if "unbound" not in programs:
        return []
    lines = ["server:", "  do-daemonize: no", "  use-syslog: no", '  username: ""', '  chroot: ""', '  pidfile: ""']
    lines += ['  directory: "{folder}"', '  module-config: "iterator"', "  access-control: 0.0.0.0/0 allow"]
    lines += ["  tls-port: 853", "  https-port: 443"]
    lines += ['  tls-service-key: "{shared}/site.key"', '  tls-service-pem: "{shared}/site.pem"']
    lines += [f"  interface: {home.resolver.ipv4}@{port}" for port in (853, 443)]
    for name in home.secret_names:
        lines += [f'  local-data: "{name}. 60 IN A {home.sites[1].ipv4}"']
    text = "\n".join([*lines, "remote-control:", "  control-enable: no", ""])
    command = (programs["unbound"], "-d", "-p", "-c", "{folder}/unbound.conf")
    return [Service("resolver", "unbound", command, {"unbound.conf": text}, ready=(_tcp(853), _tcp(443)))]


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
        shadowsocks = {
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
        freedom = {"tag": "out", "protocol": "freedom", "settings": {"finalRules": [{"action": "allow"}]}}
        log = {"loglevel": "info", "access": "{folder}/access"}
        text = json.dumps({"log": log, "inbounds": [shadowsocks, *_in_tls(home)], "outbounds": [freedom]})
        services.append(_proxy(("xray", programs["xray"]), text, SHADOWSOCKS_2022_PORT))
    return services


def _in_tls(home: Home) -> list[dict[str, Any]]:
    """Xray's inbounds of Trojan and VLESS, each tagged by its protocol."""
    certificate = {"certificateFile": "{shared}/site.pem", "keyFile": "{shared}/site.key"}
    stream = {"network": "tcp", "security": "tls", "tlsSettings": {"certificates": [certificate]}}
    trojan = {"clients": [{"password": home.trojan_password}]}
    vless = {"clients": [{"id": home.vless_uuid}], "decryption": "none"}
    return [
        {"tag": name, "listen": "::", "port": port, "protocol": name, "settings": settings, "streamSettings": stream}
        for name, port, settings in (("trojan", TROJAN_PORT, trojan), ("vless", VLESS_PORT, vless))
    ]


def _tcp(port: int) -> Listener:
    return "tcp", port


def _udp(port: int) -> Listener:
    return "udp", port


def _proxy(command: tuple[str, ...], config: str, port: int) -> Service:
    """``command`` is the service's name, the program and its options; the configuration file comes last."""
    name, *words = command
    ready = (_tcp(port), _udp(port))
    return Service("vps", name, (*words, "{folder}/config.json"), {"config.json": config}, ready)
