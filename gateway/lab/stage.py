"""The home scenario with a gateway in it: what the demo and its tests act on.

The gateway's configuration is the one in ``examples/``, with the drawn addresses in place of the printed ones.
"""

from __future__ import annotations

import datetime
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.config.text import parse
from gateway.lab.lab import Lab
from gateway.lab.netns import LabError
from gateway.lab.process import Process, User
from gateway.lab.scenario import home

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FORWARDED = 8081
USER = "nobody"
"""Whose flows the rules proxy."""
UNSTEADY = "-e nf_conntrack_count -e stable_secret -e tcp_fastopen_key"
"""Sysctls that the kernel itself draws or counts."""
PATIENCE = 20.0
"""Seconds that anything may take; generous, for the machine is shared."""


class CheckError(Exception):
    """What was seen is not what should be."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise CheckError(message)


def poll(work: Callable[[], Any], message: str, timeout: float = PATIENCE) -> Any:
    """``work()`` until it gives something true. Raises CheckError with ``message``."""
    deadline = time.monotonic() + timeout
    while not (found := work()):
        if time.monotonic() > deadline:
            raise CheckError(f"{message} (within {timeout:.0f} s)")
        time.sleep(0.05)
    return found


class Stage:
    """One lab and the gateway on its router. ``sabotage`` breaks one thing on purpose."""

    def __init__(self, programs: Mapping[str, str], seed: int, sabotage: str = "") -> None:
        self.home = home.draw(random.Random(seed))
        self.lab = Lab(home.topology(self.home, programs, datetime.datetime.now(datetime.UTC), uplink=False))
        self.sabotage = sabotage
        self.gateway: Process | None = None
        self.changes: dict[str, Any] = {}
        self.wan4 = ""

    @property
    def instance(self) -> str:
        return f"lab-{self.lab.id}"

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
        gateway["kernel"] = {"cgroup": str(self.lab.host("router").group)}
        if self.sabotage == "no-bpf":
            gateway["kernel"] = {"cgroup": "/nonexistent"}
        if self.sabotage == "no-dns-capture":
            gateway["capture_dns"] = False
        if self.sabotage == "open-wan":
            gateway["firewall"] = False
        return {**value, "gateway": {**gateway, **self.changes}}

    @property
    def tool(self) -> Path:
        """A copy of curl whose flows the rules proxy, whatever it is called with."""
        path = self.lab.folder / "tool" / "curl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copy2("/usr/bin/curl", path)
        return path

    def rules(self) -> dict[str, Any]:
        """``examples/home.json`` with this run's sites: 1 direct by address, 2 by name, 3 and 4 proxied by name, UDP
        echo proxied, 5 rejected."""
        value: dict[str, Any] = parse((EXAMPLES / "home.json").read_text(), "home.json")
        drawn, (direct, rejected, _, _, far) = self.home, value["route"]["rules"]
        value["dns"]["servers"][0]["server"] = drawn.resolver.ipv4
        value["outbounds"][1] |= {"server": drawn.vps.ipv4, "password": drawn.shadowsocks_password}
        direct["ip_cidr"] = [drawn.sites[0].ipv4, drawn.sites[0].ipv6]
        rejected["ip_cidr"] = [drawn.sites[4].ipv4, drawn.sites[4].ipv6]
        value["route"]["rules"] = [
            {"process_path": str(self.tool), "outbound": "proxy"},
            {"user": USER, "outbound": "proxy"},
            *value["route"]["rules"],
        ]
        far["domain"] = [drawn.sites[2].names[0], drawn.sites[3].names[0]]
        if self.sabotage == "all-direct":
            value["route"]["rules"] = []
        return value

    def write(self) -> list[Path]:
        paths = [self.lab.folder / "home.json", self.lab.folder / "gateway.json"]
        for path, value in zip(paths, (self.rules(), self.configuration()), strict=True):
            path.write_text(json.dumps(value, indent=1))
        return paths

    def start(self) -> None:
        """Start the gateway and wait until it answers."""
        files = [word for path in self.write() for word in ("-c", str(path))]
        if self.sabotage == "no-gateway":
            return
        command = [sys.executable, "-m", "gateway", "run", *files, "--instance", self.instance]
        self.gateway = self.lab.host("router").popen(command)
        poll(self.answers, "the gateway does not answer on its control socket")

    def answers(self) -> bool:
        if self.gateway is not None and not self.gateway.running:
            raise CheckError(f"the gateway has ended: {self.gateway.told()}")
        return bool(self.command("status", "--json").ok)

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

    def fetch(
        self, host: str, url: str, *more: str, timeout: float = 5, curl: str = "curl", user: User | None = None
    ) -> dict[str, Any]:
        """What the site at ``url`` says it saw of us. Raises CheckError."""
        words = [curl, "-s", "-S", "-m", str(timeout), *more, url]
        result = self.lab.host(host).run(words, timeout=timeout + 20, user=user)
        expect(result.ok, f"curl {url}: {result.err.strip()}")
        found: dict[str, Any] = result.json()
        return found

    def conntrack(self, *filters: str) -> list[str]:
        """Connections that the router tracks, a line each."""
        out = self.lab.host("router").run(["conntrack", "-L", *filters]).out
        return [line for line in out.splitlines() if "src=" in line]

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
        """All of the router's network that the gateway could have changed, as text."""
        router = self.lab.host("router")
        commands = {
            "nft": ["nft", "-j", "list", "ruleset"],
            "rules": ["sh", "-c", "ip -4 rule; ip -6 rule"],
            "routes": ["sh", "-c", "ip -4 route show table all; ip -6 route show table all"],
            "addresses": ["sh", "-c", "ip -br addr | sed 's/@if[0-9]*//'"],
            "sysctls": [
                "sh",
                "-c",
                f"sysctl -a 2>/dev/null | grep ^net | grep -v {UNSTEADY}",
            ],
        }
        found = {name: router.run(words).out for name, words in commands.items()}
        found["listeners"] = "\n".join(map(str, sorted(router.listeners())))
        return found

    def close(self) -> None:
        """Forget the lease of this instance; the lab takes down everything else."""
        shutil.rmtree(Path("/var/lib/gateway") / self.instance, ignore_errors=True)
        shutil.rmtree(Path("/run/gateway") / self.instance, ignore_errors=True)


__all__ = ["CheckError", "LabError", "Stage", "expect", "poll"]
