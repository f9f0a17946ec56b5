"""The package under a real systemd, in a virtual machine that routes between the lab's client and server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from gateway.lab.lab import Lab
from tests.debian import SUITE, build, builder
from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, until

from .conftest import NEXT
from .guest import Guest
from .test_upgrade import Stream

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1800), pytest.mark.xdist_group("bootstrap")]
PAUSE = 5.0
"""Seconds of a stream that count as a gap, on a machine that emulates."""
SHOW = "systemctl show gateway -p ActiveState,SubState,Result,NRestarts,MainPID,StatusText,ConditionResult,WatchdogUSec"


@pytest.fixture(scope="module", params=[SUITE, pytest.param("trixie", marks=pytest.mark.soak)])
def guest(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """With both packages, which were built for its Debian."""
    if request.param == SUITE:
        packages = [request.getfixturevalue(name) for name in ("package", "rebuilt")]
    else:
        tree = builder(tmp_path_factory.mktemp("builder"), request.param)
        packages = [build(tree), build(tree, NEXT)]
    made = Guest(lab, packages, request.param)
    try:
        yield made
    finally:
        made.close()


class Service:
    """The gateway in the guest. ``log``: what a person may want to know of a run."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self.guest = guest
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
        self.guest.write("/etc/gateway/gateway.json", json.dumps(value))

    def show(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.guest.ready(SHOW).splitlines())

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

    def plain(self) -> bool:
        """A plain router: what the rules proxy goes directly too."""
        try:
            return all(self.whole.ask("tcp", self.whole.client, site) == KERNEL[0] for site in (DIRECT[0], PROXIED[0]))
        except OSError:
            return False


def test_a_router_with_systemd(lab: Lab, guest: Guest) -> None:
    service = Service(lab, guest)
    service.step(f"booted, Linux {guest.ready('uname -r')}, {guest.ready('systemctl --version | head -1')}")

    guest.ready("mount -o ro /dev/vdb /mnt && apt-get -q update && apt-get -qy install gateway-router=0.1.0")
    shown = service.show()
    assert (shown["ActiveState"], shown["ConditionResult"]) == ("inactive", "no"), shown
    assert "ConditionPathExistsGlob=/etc/gateway/*.json" in guest.run("systemctl status gateway").out
    assert guest.ready("systemctl is-enabled gateway") == "enabled"
    assert guest.ready("nft list tables") == ""
    service.step("installed: the service is enabled and quiet, nothing is routed")

    service.write()
    guest.ready("systemctl start gateway")
    shown = service.show()
    assert shown["ActiveState"] == "active", shown
    assert until(service.routes, 60), guest.ready("journalctl -u gateway --no-pager")
    assert until(lambda: service.show()["StatusText"].startswith("routes; uplink wan0"), 10), service.show()
    status = json.loads(guest.ready("gateway status --json"))
    assert status["steering"]
    assert status["refused"] == {}, "the sandbox lets it do all that it wants"
    service.step(f"started: {service.show()['StatusText']}")

    service.write(heartbeat="4s")
    guest.ready("systemctl reload gateway")
    guest.ready("cp /etc/gateway/gateway.json /root && echo '{' >/etc/gateway/gateway.json")
    refused = guest.run("systemctl reload gateway")
    assert refused.code != 0
    assert service.active()
    assert until(lambda: "configuration kept" in service.show()["StatusText"], 10), service.show()
    guest.ready("cp /root/gateway.json /etc/gateway && systemctl reload gateway")
    assert service.routes()
    service.step("reloaded; a wrong configuration was refused, and systemctl said so")

    before = service.show()
    guest.ready(f"kill -STOP {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "1" and service.active(), 60), service.show()
    assert until(service.routes, 60)
    service.step("hung: its heartbeat killed it, systemd started it again")
    before = service.show()
    watcher = guest.ready(f"pgrep -P {before['MainPID']} -f watcher.py")
    guest.ready(f"kill -STOP {watcher} {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "2" and service.active(), 120), service.show()
    assert "Watchdog timeout" in guest.ready("journalctl -b -u gateway --no-pager | grep -i watchdog")
    guest.ready(f"kill -CONT {watcher}")
    assert until(service.routes, 60)
    service.step("hung with its heartbeat's child: systemd's watchdog killed it")

    names = service.whole.names()
    dnsmasq = guest.ready("pgrep dnsmasq")
    guest.ready("systemctl stop gateway")
    assert guest.ready("nft list tables").splitlines() == ["table inet gateway_base"]
    assert service.plain()
    assert guest.ready("pgrep dnsmasq") == dnsmasq
    assert service.whole.names() == names != ""
    guest.ready("systemctl start gateway")
    assert until(service.routes, 60)
    service.step("stopped: a plain router with names; started again")

    guest.carrier("wan0", False)
    assert until(lambda: "no carrier" in service.show()["StatusText"], 30), service.show()
    guest.carrier("wan0", True)
    assert until(service.routes, 60), service.show()
    guest.unplug("wan0")
    assert until(lambda: "absent" in service.show()["StatusText"], 30), service.show()
    service.step(f"uplink without a cable, then without its card: {service.show()['StatusText']}")

    took = guest.reboot()
    assert until(service.active, 90), guest.run("journalctl -b --no-pager | tail -50").out
    assert "no uplink" in service.show()["StatusText"]
    assert until(lambda: guest.run("systemctl is-active multi-user.target").code == 0, 60)
    service.step(f"rebooted in {took:.0f} s without the uplink's card: {service.show()['StatusText']}")
    guest.plug("wan0")
    assert until(service.routes, 90), guest.run("ip -br a; journalctl -b -u gateway --no-pager | tail -30").out
    service.step("the card came: it routes")

    streams = [Stream(service.whole.open("tcp", service.whole.client, site)) for site in DIRECT]
    try:
        before = service.show()
        guest.ready("mount -o ro /dev/vdb /mnt && apt-get -q update && apt-get -qy upgrade")
        assert guest.ready("dpkg-query -W -f='${Version}' gateway-router") == NEXT
        assert service.show()["MainPID"] != before["MainPID"], "the new one runs"
        assert until(service.routes, 60)
    finally:
        for stream in streams:
            stream.close()
    assert [stream.error for stream in streams] == ["", ""]
    assert max(stream.gap for stream in streams) < PAUSE
    kilobytes = sum(stream.received for stream in streams) / 1000
    gap = max(stream.gap for stream in streams)
    service.step(f"upgraded to {NEXT} under two direct connections ({kilobytes:.0f} kB, longest gap {gap:.1f} s)")

    guest.ready("apt-get -qy purge gateway-router")
    assert guest.ready("nft list tables") == ""
    assert guest.run("pgrep dnsmasq").code == 1
    assert guest.run("ls -d /etc/gateway /var/lib/gateway /run/gateway /usr/lib/gateway").out == ""
    assert guest.ready("ip -br -4 addr show scope global") == ""
    assert guest.ready("cat /proc/sys/net/ipv4/ip_forward") == "0"
    assert guest.run("systemctl cat gateway").code != 0
    service.step("purged: no table, no address, no process, no file")
