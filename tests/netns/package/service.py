"""The package's service under systemd, on a machine between the lab's client and server."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Protocol

from gateway.lab.lab import Lab
from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, until

from .conftest import NEXT

SHOW = "systemctl show gateway -p ActiveState,SubState,Result,NRestarts,MainPID,StatusText,ConditionResult,WatchdogUSec"


class Stream:
    """A bulk flow over one connection to the echo server, and back, some 3 MB/s. ``gap``: the longest time without
    anything received."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received = 0
        self.gap = 0.0
        self.error = ""
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._end.wait(0.005):
                self._sock.sendall(bytes(1 << 14))
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = str(error)

    def _receive(self) -> None:
        last = time.monotonic()
        try:
            while data := self._sock.recv(1 << 16):
                self.received += len(data)
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now
        except OSError as error:
            self.error = str(error)

    def close(self) -> None:
        """Sees it to its end."""
        self._end.set()
        for thread in self._threads:
            thread.join(20)
        self._sock.close()


class Said(Protocol):
    @property
    def code(self) -> int: ...
    @property
    def out(self) -> str: ...
    @property
    def err(self) -> str: ...


class Machine(Protocol):
    """What the service needs of it. ``gap``: seconds of a stream that count as one; ``take``, ``renew``: what installs
    the package, and the rebuilt one."""

    gap: float
    take: str
    renew: str

    def run(self, text: str) -> Said: ...
    def ready(self, text: str) -> str: ...
    def write(self, name: str, text: str) -> None: ...


class Service:
    """The gateway of a machine. ``log``: what a person may want to know of a run."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self.machine = machine
        self.whole = Whole(lab)
        self.log: list[str] = []
        self._begun = time.monotonic()

    def step(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._begun:6.1f} s  {text}")
        print(self.log[-1], flush=True)

    def write(self, **more: object) -> None:
        value = json.loads(self.whole.write("open", kernel={}, **more).read_text())
        # So that there is something for the process programs to do.
        value["route"]["rules"].append({"process_path": "/usr/bin/nothing", "outbound": "far"})
        self.machine.write("/etc/gateway/gateway.json", json.dumps(value))

    def show(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.machine.ready(SHOW).splitlines())

    def active(self) -> bool:
        return self.show()["ActiveState"] == "active"

    def routes(self) -> bool:
        """Direct and proxied flows of both families go their way."""
        try:
            return all(
                (
                    self.whole.ask("tcp", self.whole.client, DIRECT[six]),
                    self.whole.ask("tcp", self.whole.client, PROXIED[six]),
                )
                == (KERNEL[six], USERSPACE[six])
                for six in (0, 1)
            )
        except OSError:
            return False

    def must_route(self, seconds: float = 60) -> None:
        """Soon; else it tells what all three of them know."""
        shown = "ip addr; ip route; ip -6 route; ip neigh; "
        assert until(self.routes, seconds), "\n".join(
            [self.machine.run(f"{shown} nft list counters; journalctl -b -u gateway --no-pager | tail -40").out]
            + [host.run(["sh", "-c", shown]).out for host in (self.whole.client, self.whole.server)]
        )

    def plain(self) -> bool:
        """A plain router: what the rules proxy goes directly too."""
        try:
            return all(self.whole.ask("tcp", self.whole.client, site) == KERNEL[0] for site in (DIRECT[0], PROXIED[0]))
        except OSError:
            return False


def installed(service: Service) -> None:
    machine = service.machine
    machine.ready(machine.take)
    shown = service.show()
    assert (shown["ActiveState"], shown["ConditionResult"]) == ("inactive", "no"), shown
    assert "ConditionPathExistsGlob=/etc/gateway/*.json" in machine.run("systemctl status gateway").out
    assert machine.ready("systemctl is-enabled gateway") == "enabled"
    assert machine.ready("nft list tables") == ""
    service.step("installed: the service is enabled and quiet, nothing is routed")


def reloaded(service: Service) -> None:
    machine = service.machine
    machine.ready("rm -f /etc/gateway/*")
    service.write()
    machine.ready("systemctl restart gateway")
    service.must_route()
    service.write(heartbeat="4s")
    machine.ready("systemctl reload gateway")
    machine.ready("cp /etc/gateway/gateway.json /root && echo '{' >/etc/gateway/gateway.json")
    refused = machine.run("systemctl reload gateway")
    assert refused.code != 0
    assert service.active()
    assert until(lambda: "configuration kept" in service.show()["StatusText"], 10), service.show()
    machine.ready("cp /root/gateway.json /etc/gateway && systemctl reload gateway")
    assert service.routes()
    service.step("reloaded; a wrong configuration was refused, and systemctl said so")


def hung(service: Service) -> None:
    machine = service.machine
    before = service.show()
    machine.ready(f"kill -STOP {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "1" and service.active(), 60), service.show()
    service.must_route()
    service.step("hung: its heartbeat killed it, systemd started it again")
    before = service.show()
    watcher = machine.ready(f"pgrep -P {before['MainPID']} -f watcher.py")
    machine.ready(f"kill -STOP {watcher} {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "2" and service.active(), 120), service.show()
    assert "Watchdog timeout" in machine.ready("journalctl -b -u gateway --no-pager | grep -i watchdog")
    machine.ready(f"kill -CONT {watcher}")
    service.must_route()
    service.step("hung with its heartbeat's child: systemd's watchdog killed it")


def stopped(service: Service) -> None:
    machine = service.machine
    names = service.whole.names()
    dnsmasq = machine.ready("pgrep dnsmasq")
    machine.ready("systemctl stop gateway")
    assert machine.ready("nft list tables").splitlines() == ["table inet gateway_base"]
    assert service.plain()
    assert machine.ready("pgrep dnsmasq") == dnsmasq
    assert service.whole.names() == names != ""
    machine.ready("systemctl start gateway")
    service.must_route()
    service.step("stopped: a plain router with names; started again")


def upgraded(service: Service) -> None:
    machine = service.machine
    streams = [Stream(service.whole.open("tcp", service.whole.client, site)) for site in DIRECT]
    try:
        before = service.show()
        machine.ready(machine.renew)
        assert machine.ready("dpkg-query -W -f='${Version}' gateway-router") == NEXT
        assert service.show()["MainPID"] != before["MainPID"], "the new one runs"
        service.must_route()
    finally:
        for stream in streams:
            stream.close()
    assert [stream.error for stream in streams] == ["", ""]
    assert max(stream.gap for stream in streams) < machine.gap
    kilobytes = sum(stream.received for stream in streams) / 1000
    gap = max(stream.gap for stream in streams)
    service.step(f"upgraded to {NEXT} under two direct connections ({kilobytes:.0f} kB, longest gap {gap:.1f} s)")


def purged(service: Service) -> None:
    machine = service.machine
    machine.ready("apt-get -qy purge gateway-router")
    assert machine.ready("nft list tables") == ""
    assert machine.run("pgrep dnsmasq").code == 1
    assert machine.run("ls -d /etc/gateway /var/lib/gateway /run/gateway /usr/lib/gateway").out == ""
    assert machine.ready("ip -br -4 addr show scope global") == ""
    assert machine.ready("cat /proc/sys/net/ipv4/ip_forward") == "0"
    assert machine.run("systemctl cat gateway").code != 0
    service.step("purged: no table, no address, no process, no file")
