"""Routers side by side between one client and one server, each in its own network namespace.

::

    client ──[lan] ours  [wan]── server      192.168.1.0/24   192.0.2.16/28   198.51.100.1
       ├─────[lan] plain [wan]─────┤         192.168.2.0/24   192.0.2.32/28   198.51.100.2
       └─────[lan] peer  [wan]─────┘         192.168.3.0/24   192.0.2.48/28   198.51.100.3

All stand at once, so that runs may alternate; the one that is not measured idles. The client reaches the server at the
address that lies behind the router it means, one hop beyond the router's own networks (which a sing-box router never
takes over). Everything goes with the :class:`Lab`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan
from tests import peers
from tests.bench.measure import say

HTTP, BULK, DNS = 8080, 5201, 53
Ready = Sequence[tuple[Any, int]]
FIRST_PORT = "10000 65000"
NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log {folder}/error error;
user root;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {port} backlog=4096;
        keepalive_timeout 300s;
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""
MASQUERADE = """
table ip nat {
    chain postrouting { type nat hook postrouting priority srcnat; policy accept; oifname "wan" masquerade; }
}
"""


@dataclass
class Router:
    """``lan`` its address for the client, ``target`` the server's behind it."""

    name: str
    number: int
    host: Host
    process: Process | None = None
    start: Callable[[], None] | None = None

    @property
    def lan(self) -> str:
        return f"192.168.{self.number}.1"

    @property
    def client(self) -> str:
        return f"192.168.{self.number}.2"

    @property
    def target(self) -> str:
        return f"198.51.100.{self.number}"

    @property
    def hop(self) -> str:
        """Where its default route goes."""
        return f"192.0.2.{self.number * 16 + 2}"

    @property
    def pid(self) -> int:
        assert self.process is not None, f"nothing runs on {self.name}"
        return self.process.pid

    def alive(self) -> None:
        assert self.process is None or self.process.running, f"{self.name} has ended: {self.process.told()}"


class Rig:
    """A standing set of routers. See :func:`rig`."""

    def __init__(self, lab: Lab, names: Sequence[str]) -> None:
        self.lab = lab
        self.client, self.server = lab.host("client"), lab.host("server")
        self.routers = {name: Router(name, number, lab.host(name)) for number, name in enumerate(names, 1)}

    def __getitem__(self, name: str) -> Router:
        return self.routers[name]

    def offload(self, on: bool, merge: bool = False) -> None:
        """Segmentation offloads of every cable: what lets one packet in the kernel stand for 64 KB on the wire. Without
        them each packet on a cable is one of the wire's, and every one is forwarded by itself, unless receivers
        ``merge`` them as many network cards' drivers do (GRO)."""
        word, gro = ("on", "off") if on else ("off", "on" if merge else "off")
        ethtool = str(peers.path("ethtool"))
        for host in (self.client, self.server, *(router.host for router in self.routers.values())):
            for name in interfaces(host.plan.name, list(self.routers)):
                host.run([ethtool, "-K", name, "tso", word, "gso", word, "gro", gro], check=True)

    def forget(self) -> None:
        """Connections that the routers track from earlier runs."""
        for router in self.routers.values():
            router.host.run(["conntrack", "-F"])

    def plain(self, name: str) -> Router:
        """A router with nothing but the kernel's forwarding and masquerade."""
        router = self[name]
        router.host.run(["nft", "-f", "-"], stdin=MASQUERADE.encode(), check=True)
        return router

    def ours(self, name: str, config: Mapping[str, Any], gateway: Mapping[str, Any] | None = None) -> Router:
        """Our gateway, with ``config`` as a sing-box file and a ``gateway`` object for this router beside it."""
        files = [("rules", config), ("gateway", {"gateway": gateway_object(self[name]) | dict(gateway or {})})]
        return self._program(name, files, lambda told: bool(told["steering"]))

    def alone(self, name: str, config: Mapping[str, Any]) -> Router:
        """Our program with a sing-box file and nothing else, on a router that masquerades."""
        self.plain(name)
        return self._program(name, [("rules", config)], lambda told: told["state"] == "running")

    def _program(
        self, name: str, values: Sequence[tuple[str, Any]], ready: Callable[[Mapping[str, Any]], bool]
    ) -> Router:  # fmt: skip
        router = self[name]
        files = []
        for part, value in values:
            files += ["-c", str(self.write(f"{name}-{part}.json", value))]
        instance = f"bench-{self.lab.id}-{name}"
        command = [sys.executable, "-m", "gateway", "run", *files, "--instance", instance]
        say(f"ours on {name}: {' '.join(command)}")
        asking = [sys.executable, "-m", "gateway", "status", "--json", "--instance", instance]

        def start() -> None:
            router.process = router.host.popen(command)
            deadline = time.monotonic() + 60
            while not (told := router.host.run(asking)).ok or not ready(json.loads(told.out)):
                router.alive()
                assert time.monotonic() < deadline, told.out + told.err

        router.start = start
        start()
        return router

    def sing_box(self, name: str, config: Mapping[str, Any], ready: Ready = (), nft: str = "") -> Router:
        """sing-box as it comes, GOMAXPROCS untouched; its configuration is printed."""
        router = self.plain(name)
        if nft:
            router.host.run(["nft", "-f", "-"], stdin=nft.encode(), check=True)
        value = {"log": {"level": "warn"}} | dict(config)
        say(f"sing-box on {name}: {json.dumps(value)}{nft}")
        command = [str(peers.path("sing-box")), "run", "-c", str(self.write(f"{name}.json", value))]

        def start() -> None:
            router.process = router.host.popen(command, cwd=self.lab.folder)
            router.host.wait_listening(tuple(ready), router.process)

        router.start = start
        start()
        return router

    def restart(self, name: str) -> None:
        """The same program with the same configuration, as a new process."""
        router = self[name]
        assert router.process is not None
        assert router.start is not None
        router.process.stop()
        router.start()

    def write(self, name: str, value: Any) -> Path:
        file = self.lab.folder / name
        file.write_text(json.dumps(value, indent=1))
        return file

    def serve(self, command: Sequence[str | Path], ready: Ready) -> Process:
        """A program on the server."""
        process = self.server.popen(command)
        self.server.wait_listening(tuple(ready), process)
        say(f"server: {' '.join(map(str, command))}")
        return process

    def nginx(self) -> Process:
        folder = self.lab.folder / "nginx"
        folder.mkdir()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=HTTP))
        command = [peers.path("nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error"]
        return self.serve(command, [("tcp", HTTP)])

    def iperf3(self) -> Process:
        return self.serve([peers.path("iperf3"), "-s", "-p", str(BULK)], [("tcp", BULK)])


@contextlib.contextmanager
def rig(*names: str) -> Iterator[Rig]:
    """Routers of these names, with nothing on them yet. Needs root."""
    peers.path("ethtool"), peers.path("conntrack")
    with Lab(topology(names)) as lab:
        yield Rig(lab, names)


def interfaces(host: str, names: Sequence[str]) -> list[str]:
    return [f"to-{name}" for name in names] if host in ("client", "server") else ["lan", "wan"]


def topology(names: Sequence[str]) -> Topology:
    links, hosts = [], []
    client: dict[str, tuple[str, ...]] = {}
    server: dict[str, tuple[str, ...]] = {}
    routes = []
    ports = {"ipv4/ip_local_port_range": FIRST_PORT}
    for number, name in enumerate(names, 1):
        lan, wan = f"192.168.{number}", number * 16
        links += [
            Link(End("client", f"to-{name}"), End(name, "lan")),
            Link(End("server", f"to-{name}"), End(name, "wan")),
        ]
        client[f"to-{name}"] = (f"{lan}.2/24",)
        server[f"to-{name}"] = (f"192.0.2.{wan + 2}/28",)
        server["lo"] = (*server.get("lo", ()), f"198.51.100.{number}/32")
        routes.append(Route(f"198.51.100.{number}/32", f"{lan}.1"))
        addresses = {"lan": (f"{lan}.1/24",), "wan": (f"192.0.2.{wan + 1}/28",)}
        way = (Route("default", f"192.0.2.{wan + 2}"),)
        hosts.append(Plan(name, addresses=addresses, routes=way, sysctls=ports | {"ipv4/ip_forward": "1"}))
    hosts += [Plan("client", addresses=client, routes=tuple(routes), sysctls=ports), Plan("server", addresses=server)]
    return Topology("bench", tuple(hosts), tuple(links))


def gateway_object(router: Router) -> dict[str, Any]:
    """What makes a router of ours out of it."""
    wan = router.number * 16
    static = {"address": [f"192.0.2.{wan + 1}/28"], "gateway": [router.hop]}
    return {
        "uplinks": [{"interface": "wan", "static": static}],
        "lans": [{"interface": "lan", "address": [f"{router.lan}/24"]}],
        "kernel": {"cgroup": str(router.host.group)},
    }
