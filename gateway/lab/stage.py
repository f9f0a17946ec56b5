"""The home scenario with a gateway in it: what the demo and its tests act on.

The gateway's configuration is the one in ``examples/``, with the drawn addresses in place of the printed ones.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gateway.box import RUN
from gateway.config.text import parse
from gateway.lab import cgroup
from gateway.lab.forecast import CheckError, Forecast, expect, forecast
from gateway.lab.lab import Lab
from gateway.lab.netns import LabError
from gateway.lab.process import Process, User
from gateway.lab.scenario import home
from gateway.lab.scenario.services import SHADOWSOCKS_2022_METHOD, SHADOWSOCKS_2022_PORT, TROJAN_PORT, VLESS_PORT
from gateway.lab.snapshot import snapshot
from gateway.service.control import alive, ask

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FORWARDED, FORWARDED_UDP = 8081, 8087
USER, GROUP = "nobody", "users"
"""Whose flows the rules proxy."""
GROUP_TAG, SPARE = "auto", "spare"
"""A group of outbounds, and the proxy among its members."""
UNIT = "backup.service"
"""Cgroup of the router whose flows the rules proxy."""
PATIENCE = 20.0
"""Seconds that anything may take; generous, for the machine is shared."""


def poll(work: Callable[[], Any], message: str, timeout: float = PATIENCE) -> Any:
    """``work()`` until it gives something true. Raises CheckError with ``message``."""
    deadline = time.monotonic() + timeout
    while not (found := work()):
        if time.monotonic() > deadline:
            raise CheckError(f"{message} (within {timeout:.0f} s)")
        time.sleep(0.05)
    return found


class Stage:
    """One lab and the gateway on its router. Each of ``sabotages`` breaks one thing on purpose."""

    def __init__(self, programs: Mapping[str, str], seed: int, sabotages: Collection[str] = ()) -> None:
        self.home = home.draw(random.Random(seed), sites=6)
        self.lab = Lab(home.topology(self.home, programs, datetime.datetime.now(datetime.UTC), uplink=False))
        self.sabotages = sabotages
        self.gateway: Process | None = None
        self.changes: dict[str, Any] = {}
        self.wan4 = ""
        self.acked = 0
        """Acknowledgements that the DHCP server had sent when the lease was looked at."""
        self.forecasts: list[Forecast] = []

    @property
    def instance(self) -> str:
        return f"lab-{self.lab.id}"

    @property
    def folder(self) -> Path:
        """Where the gateway of this stage has its control socket."""
        return RUN / self.instance

    def configuration(self) -> dict[str, Any]:
        """``examples/gateway.json`` with this run's addresses."""
        value: dict[str, Any] = parse((EXAMPLES / "gateway.json").read_text(), "gateway.json")
        drawn, gateway = self.home, value["gateway"]
        static = gateway["uplinks"][0]["static"]
        static["address"], static["gateway"] = [f"{drawn.router_wan6}/64"], [drawn.isp6]
        lan, net = gateway["lans"][0], drawn.lan4.rpartition(".")[0]
        lan["address"] = [f"{drawn.router_lan4}/24", f"{drawn.router_lan6}/64"]
        lan["dhcp_server"]["range"] = [f"{net}.100", f"{net}.199"]
        gateway["forwards"][0]["to"] = drawn.lan1.ipv4
        network = "tcp" if "tcp-forward" in self.sabotages else "udp"
        echo = {"network": network, "port": FORWARDED_UDP, "to": drawn.lan1.ipv4, "to_port": 7}
        gateway["forwards"].append(echo)
        gateway["kernel"] = {"cgroup": str(self.lab.host("router").group)}
        if "no-bpf" in self.sabotages:
            gateway["kernel"] = {"cgroup": "/nonexistent"}
        if "no-dns-capture" in self.sabotages:
            gateway["capture_dns"] = False
        if "open-wan" in self.sabotages:
            gateway["firewall"] = False
        if "kernel-off" in self.sabotages:
            gateway["kernel"]["mode"] = "off"
        gateway |= self.changes
        if "fails-open" in self.sabotages:
            gateway["fail"] = "open"
        return {**value, "gateway": gateway}

    @property
    def tool(self) -> Path:
        """A copy of curl whose flows the rules proxy, whatever it is called with."""
        return self.copy("tool")

    def copy(self, folder: str) -> Path:
        """``curl`` in a folder of that name."""
        path = self.lab.folder / folder / "curl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copy2("/usr/bin/curl", path)
        return path

    def unit(self, name: str) -> Path:
        """The router's cgroup called ``name``, made where it is not there yet."""
        group: Path = self.lab.host("router").group / name
        group.mkdir(parents=True, exist_ok=True)
        return group

    def rules(self) -> dict[str, Any]:
        """``examples/home.json`` with this run's sites: 1 direct by address, 2 by name, 3 and 4 proxied by name, UDP
        echo proxied, 5 rejected, the login of 3 through a group; of the two names of 6 the first is proxied, the second
        direct. Before that: all of lan3 is direct, some programs of the router are proxied."""
        value: dict[str, Any] = parse((EXAMPLES / "home.json").read_text(), "home.json")
        drawn, (direct, rejected, _, _, far) = self.home, value["route"]["rules"]
        value["dns"]["servers"][0]["server"] = drawn.resolver.ipv4
        value["outbounds"][1] |= {"server": drawn.vps.ipv4, "password": drawn.shadowsocks_password}
        self._encrypt(value)
        direct["ip_cidr"] = [drawn.sites[0].ipv4, drawn.sites[0].ipv6]
        rejected["ip_cidr"] = [drawn.sites[4].ipv4, drawn.sites[4].ipv6]
        other = "02" + drawn.lan3_mac[2:-2] + f"{int(drawn.lan3_mac[-2:], 16) ^ 1:02x}"
        unit = self.lab.host("router").group.relative_to(cgroup.root()) / UNIT
        value["route"]["rules"] = [
            {"source_mac_address": other if "private-mac" in self.sabotages else drawn.lan3_mac, "outbound": "direct"},
            {"process_path": [str(self.tool), str(self.copy("upgraded"))], "outbound": "proxy"},
            *({"process_path": str(self.copy(name)), "outbound": name} for name in ("trojan", "vless")),
            {"user": USER, "outbound": "proxy"},
            {"group": GROUP, "outbound": "proxy"},
            {"cgroup": f"/{unit}", "outbound": "proxy"},
            {"ip_cidr": [drawn.sites[2].ipv4, drawn.sites[2].ipv6], "port": 22, "outbound": GROUP_TAG},
            *value["route"]["rules"],
        ]
        value["outbounds"] += self.group()
        far["domain"] = [drawn.sites[number].names[0] for number in (2, 3, 5)]
        if "all-direct" in self.sabotages:
            value["route"]["rules"] = []
        if "all-proxied" in self.sabotages:
            value["route"] |= {"rules": [], "final": "proxy"}
        return value

    def _encrypt(self, value: dict[str, Any]) -> None:
        """Servers and proxies in TLS: two names are asked for over TLS and over HTTPS, two copies of curl go through
        Trojan and VLESS."""
        drawn = self.home

        def tls(site: home.Site) -> dict[str, Any]:
            name = "elsewhere.example" if "wrong-server-name" in self.sabotages else site.names[0]
            return {"enabled": True, "server_name": name, "certificate_path": str(self.lab.shared / "ca.pem")}

        proxy = {"server": drawn.vps.ipv4, "tls": tls(drawn.vps)}
        value["outbounds"] += [
            {"type": "trojan", "tag": "trojan", "server_port": TROJAN_PORT, "password": drawn.trojan_password, **proxy},
            {"type": "vless", "tag": "vless", "server_port": VLESS_PORT, "uuid": drawn.vless_uuid, **proxy},
        ]
        server = {"server": drawn.resolver.ipv4, "tls": tls(drawn.resolver)}
        value["dns"]["servers"] += [{"type": "tls", "tag": "dot", **server}, {"type": "https", "tag": "doh", **server}]
        value["dns"]["rules"] = [
            {"domain": name, "server": tag} for name, tag in zip(drawn.secret_names, ("dot", "doh"), strict=True)
        ]

    def group(self) -> list[dict[str, Any]]:
        """Of the second proxy and the direct outbound, probed through the first site; a proxy that is as quick as to be
        expected is used."""
        drawn = self.home
        proxy = {
            "type": "shadowsocks", "tag": SPARE, "server": drawn.vps.ipv4, "server_port": SHADOWSOCKS_2022_PORT,
            "method": SHADOWSOCKS_2022_METHOD, "password": drawn.shadowsocks_2022_password,
        }  # fmt: skip
        members = [SPARE] if "one-member" in self.sabotages else [SPARE, "direct"]
        probes = {"url": f"http://{drawn.sites[0].ipv4}/", "interval": "2s", "tolerance": 2000}
        return [proxy, {"type": "urltest", "tag": GROUP_TAG, "outbounds": members, **probes}]

    def write(self) -> list[Path]:
        paths = [self.lab.folder / "home.json", self.lab.folder / "gateway.json"]
        for path, value in zip(paths, (self.rules(), self.configuration()), strict=True):
            path.write_text(json.dumps(value, indent=1))
        return paths

    def start(self) -> None:
        """Start the gateway and wait until it runs."""
        files = self.write()
        if "no-gateway" in self.sabotages:
            return
        self.gateway = self.launch("router", files, self.instance)

    def launch(self, host: str, files: list[Path], instance: str, *more: str) -> Process:
        """A gateway on ``host``, once it runs. Raises CheckError."""
        words = [word for path in files for word in ("-c", str(path))]
        command = [sys.executable, "-m", "gateway", "run", *words, "--instance", instance, *more]
        process, folder = self.lab.host(host).popen(command), RUN / instance

        def answers() -> bool:
            if not process.running:
                raise CheckError(f"the gateway has ended: {process.told()}")
            return alive(folder / "control.sock") and ask(folder, {"command": "status"}).get("state") == "running"

        poll(answers, "the gateway does not answer on its control socket")
        return process

    def hangup(self) -> str:
        """SIGHUP with what the configuration is now; the line in which the gateway says how that went."""
        if self.gateway is None:
            raise CheckError("no gateway runs")
        log = self.gateway.err
        before = len(log.read_text())
        self.write()
        self.signal(signal.SIGHUP)

        def said() -> str:
            lines = log.read_text()[before:].splitlines()
            return next((line for line in lines if "configuration applied" in line or "configuration kept" in line), "")

        return str(poll(said, "the gateway does not say that it has reloaded"))

    def command(self, *words: str) -> Any:
        return self.lab.host("router").run([sys.executable, "-m", "gateway", *words, "--instance", self.instance])

    def signal(self, number: signal.Signals) -> None:
        if self.gateway is not None:
            self.gateway.signal(number)

    def plug(self) -> None:
        self.lab.connect(home.uplink_link(self.home))

    def unplug(self) -> None:
        self.lab.disconnect("router", "wan")

    def lease(self) -> str:
        """The address that the DHCP server's lease file gives to our hardware address, "" while there is none."""
        file = self.lab.service_folder("isp", "dnsmasq") / "leases"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return next((row[2] for row in rows if len(row) > 2 and row[1] == self.home.wan_mac), "")

    def acks(self) -> int:
        """How often the DHCP server has acknowledged our lease."""
        log = self.lab.service_folder("isp", "dnsmasq") / "log"
        text = log.read_text() if log.exists() else ""
        return sum("DHCPACK" in line and self.home.wan_mac in line for line in text.splitlines())

    def predict(self, destination: str, *, source: str = "", **more: Any) -> Forecast:
        """What the gateway's ``explain`` says of a flow to ``destination`` now, of a LAN host called ``source`` or of
        the router itself; ``more``: network, port, process, user, uid, gids, cgroup, shown. Kept in ``forecasts``."""
        if source:
            host = next(site for site in self.home.inside if site.host == source)
            more["source"] = host.ipv6 if ":" in destination else host.ipv4
            if source == "lan3":  # it sends from another IPv6 address than this one, which no neighbour has asked for
                more["mac"] = self.home.lan3_mac
        found = forecast(self.folder, destination, **more)
        self.forecasts.append(found)
        return found

    def way(self, client: str) -> str:
        """How a flow went, told by whom the server saw: ``proxy``, ``direct``, or the address of somebody else."""
        if client in (self.home.vps.ipv4, self.home.vps.ipv6):
            return "proxy"
        own = [self.wan4, self.home.router_wan6]
        inside = ipaddress.ip_network(self.home.lan6)
        return "direct" if client in own or ipaddress.ip_address(client) in inside else client

    def fetch(
        self, host: str, url: str, *more: str, timeout: float = 5, curl: str = "curl", user: User | None = None,
        within: Path | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What the site at ``url`` says it saw of us. ``within``: a cgroup that is there. Raises CheckError."""
        words = [curl, "-s", "-S", "-m", str(timeout), *more, url]
        result = self.lab.host(host).run(words, timeout=timeout + 20, user=user, within=within)
        expect(result.ok, f"curl {url}: {result.err.strip()}")
        found: dict[str, Any] = result.json()
        return found

    def conntrack(self, *filters: str) -> list[str]:
        """Connections that the router tracks, a line each."""
        out = self.lab.host("router").run(["conntrack", "-L", *filters]).out
        return [line for line in out.splitlines() if "src=" in line]

    def counted(self, name: str, table: str = "gateway") -> int:
        """Packets that this counter of the router's nftables has seen, 0 where there is none."""
        told = self.lab.host("router").run(["nft", "-j", "list", "counter", "inet", table, name])
        rows = told.json()["nftables"] if told.ok else []
        return sum(row["counter"]["packets"] for row in rows if "counter" in row)

    def settled(self) -> dict[str, str]:
        """The snapshot once two in a row are equal: links that were just made take a moment to come up."""
        last = self.snapshot()

        def same() -> bool:
            nonlocal last
            time.sleep(0.5)
            last, before = self.snapshot(), last
            return last == before

        poll(same, "the router's network does not settle")
        return last

    def snapshot(self) -> dict[str, str]:
        return snapshot(self.lab.host("router"))


__all__ = ["CheckError", "LabError", "Stage", "expect", "poll"]
