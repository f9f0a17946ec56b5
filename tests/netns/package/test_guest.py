"""The package under a real systemd, in a virtual machine that routes between the lab's client and server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from gateway.lab.lab import Lab
from gateway.lab.process import Result
from gateway.lab.snapshot import differences, network
from tests.debian import SUITE, build, builder
from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, until

from .conftest import NEXT
from .guest import Guest
from .test_upgrade import Stream

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1800), pytest.mark.xdist_group("bootstrap")]
PAUSE = 5.0
"""Seconds of a stream that count as a gap, on a machine that emulates."""
LAN = "192.168.7.1"
SET_UP = """
modprobe nf_conntrack
ip link set lan0 up
ip link set wan0 up
ip addr add 192.168.7.1/24 dev lan0
ip addr add 203.0.113.1/24 dev wan0
ip addr add 203.0.113.9/24 dev wan0
ip addr add 2001:db8:3::1/64 dev wan0 nodad
ip addr add 2001:db8:3::9/64 dev wan0 nodad
ip route add default via 203.0.113.2 dev wan0
ip -6 route add default via 2001:db8:3::2 dev wan0
"""
"""By hand, as somebody has it who comes over SSH. A module that the kernel has loaded stays, and so do its sysctls."""
GOOD = (
    "--uplink wan0 --kind static --dns 203.0.113.2 --lan lan0 --lan-address 192.168.7.1/24"
    " --lan-address 2001:db8:1::1/64"
)
WRONG = "--uplink lan0 --kind static --gateway 192.168.7.2 --dns 192.168.7.2 --lan wan0 --lan-address 192.168.9.1/24"
"""The ports mixed up: where its owner is, there is the closed WAN."""
TAKE = "mountpoint -q /mnt || mount -o ro /dev/vdb /mnt; apt-get -q update && apt-get -qy install gateway-router=0.1.0"
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


OWNERS = {
    "NetworkManager": ("systemctl start NetworkManager", "systemctl stop NetworkManager"),
    "connman": ("systemctl start connman", "systemctl stop connman"),
    "systemd-networkd": (
        "mkdir -p /etc/systemd/network; printf '[Match]\\nName=wan0\\n[Network]\\nDHCP=ipv4\\n'"
        " >/etc/systemd/network/50-wan0.network && systemctl start systemd-networkd",
        "rm /etc/systemd/network/*.network; systemctl stop systemd-networkd.socket systemd-networkd",
    ),
    "ifupdown": (
        "printf 'iface wan0 inet static\\n address 203.0.113.7/24\\n' >>/etc/network/interfaces && ifup wan0",
        "true",
    ),
}
"""What makes it configure wan0, and what ends it."""


class Service:
    """The gateway in the guest. ``log``: what a person may want to know of a run."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self.guest = guest
        self.whole = Whole(lab)
        self.log: list[str] = []
        self._begun = time.monotonic()

    def trial(self, seconds: int, *files: str) -> None:
        """As a person begins one over SSH."""
        words = f"gateway run --trial {seconds} {' '.join('-c ' + name for name in files)}"
        done = self.comes(f"nohup sh -c '{words}; echo ended $?' >/root/log 2>&1 </dev/null &")
        assert done.ok, done.err

    def comes(self, command: str = "true") -> Result:
        """By a new connection of somebody on the LAN."""
        return self.guest.ssh(self.whole.client, LAN, command)

    def settled(self) -> dict[str, str]:
        last: dict[str, str] = {}

        def same() -> bool:
            nonlocal last
            before, last = last, network(self.guest.ready)
            return before == last

        assert until(same, 60)
        return last

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

    def must_route(self, seconds: float = 60) -> None:
        """Soon; else it tells what all three of them know."""
        shown = "ip addr; ip route; ip -6 route; ip neigh; "
        assert until(self.routes, seconds), "\n".join(
            [self.guest.run(f"{shown} nft list counters; journalctl -b -u gateway --no-pager | tail -40").out]
            + [host.run(["sh", "-c", shown]).out for host in (self.whole.client, self.whole.server)]
        )

    def plain(self) -> bool:
        """A plain router: what the rules proxy goes directly too."""
        try:
            return all(self.whole.ask("tcp", self.whole.client, site) == KERNEL[0] for site in (DIRECT[0], PROXIED[0]))
        except OSError:
            return False


def test_who_owns_the_uplink(guest: Guest) -> None:
    """The line that the refusal names makes each of them let go, and our client starts."""

    def owner() -> dict[str, str] | None:
        ports = {one["name"]: one for one in json.loads(guest.ready("gateway init --json"))["ports"]}
        return ports["wan0"]["owner"]  # type: ignore[no-any-return]

    def uplink() -> dict[str, str]:
        return json.loads(guest.ready("gateway status --json"))["uplinks"][0]  # type: ignore[no-any-return]

    guest.ready(TAKE)
    guest.write("/root/gateway.json", json.dumps({"gateway": {"uplinks": [{"interface": "wan0", "dhcp4": {}}]}}))
    assert owner() is None
    for name, (begin, end) in OWNERS.items():
        guest.ready(begin)
        assert until(lambda: (owner() or {}).get("program") == name, 60), (name, owner())  # noqa: B023
        release = (owner() or {})["release"]
        checked = guest.run("gateway check --host -c /root/gateway.json")
        assert checked.code == 1
        assert name in checked.out
        guest.ready("cp /root/gateway.json /etc/gateway && systemctl start gateway")
        assert until(lambda: uplink()["owner"].startswith(name), 30), uplink()  # noqa: B023
        assert release in uplink()["problem"]
        guest.ready(release)
        assert until(lambda: not uplink()["owner"], 30), (name, release, uplink())
        assert owner() is None
        guest.ready("systemctl stop gateway && gateway down && rm /etc/gateway/gateway.json")
        guest.ready(end)
    guest.ready("apt-get -qy purge gateway-router")


def test_a_router_with_systemd(lab: Lab, guest: Guest) -> None:
    service = Service(lab, guest)
    service.step(f"booted, Linux {guest.ready('uname -r')}, {guest.ready('systemctl --version | head -1')}")
    for phase in (_install, _trials, _boot, _reload, _hang, _stop, _lose_the_uplink, _upgrade, _purge):
        phase(service)


def _install(service: Service) -> None:
    guest = service.guest
    guest.ready(TAKE)
    shown = service.show()
    assert (shown["ActiveState"], shown["ConditionResult"]) == ("inactive", "no"), shown
    assert "ConditionPathExistsGlob=/etc/gateway/*.json" in guest.run("systemctl status gateway").out
    assert guest.ready("systemctl is-enabled gateway") == "enabled"
    assert guest.ready("nft list tables") == ""
    service.step("installed: the service is enabled and quiet, nothing is routed")


def _trials(service: Service) -> None:
    guest = service.guest
    # An address that it makes of the gateway's advertisements would be another one than is looked for.
    service.whole.client.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"], check=True)
    guest.admit()
    guest.ready(SET_UP)
    assert until(lambda: service.comes().ok, 30), service.comes().err
    rules = {"outbounds": [{"type": "direct", "tag": "direct"}, {"tag": "far", **service.whole.far}],
             "route": {"rules": [{"ip_cidr": [*PROXIED], "outbound": "far"}], "final": "direct"}}  # fmt: skip
    guest.write("/root/rules.json", json.dumps(rules))
    told = json.loads(guest.ready("gateway init --json"))
    assert {one["name"]: one["driver"] for one in told["ports"]} == {"lan0": "virtio_net", "wan0": "virtio_net"}
    for name, words in (("good", GOOD), ("wrong", WRONG)):
        guest.ready(f"gateway init {words} --from /root/rules.json -o /root/{name}.json")
        guest.ready(f"gateway check -c /root/rules.json -c /root/{name}.json")
    assert guest.ready("ls /etc/gateway") == ""
    service.step("init: two configurations, one of them with the ports mixed up")

    before = service.settled()
    service.trial(30, "/root/rules.json", "/root/wrong.json")
    begun = time.monotonic()
    assert until(lambda: not service.comes().ok, 60), guest.ready("cat /root/log")
    service.step("a trial of the wrong one: who began it does not come in any more")
    assert until(lambda: service.comes().ok, 120), guest.ready("cat /root/log")
    back = time.monotonic() - begun
    assert until(lambda: "ended 3" in guest.ready("cat /root/log"), 30), guest.ready("cat /root/log")
    assert differences(before, service.settled()) == []
    service.step(f"{back:.0f} s after its start he comes in again, and the network is as it was, to the byte")

    service.trial(120, "/root/rules.json", "/root/good.json")
    service.must_route()
    said: list[Result] = []

    def confirmed() -> bool:
        # Refused as long as the start goes on changing the network: it says so, and to come again.
        said.append(service.comes("gateway confirm"))
        return said[-1].ok

    assert until(confirmed, 60), said[-1].err
    guest.ready("pkill -INT -f '^/usr/bin/python3.*gateway run --trial'")
    assert until(lambda: "ended 0" in guest.ready("cat /root/log"), 30), guest.ready("cat /root/log")
    assert service.plain()
    service.step(f"a trial of the good one: {said[-1].out.strip().splitlines()[0]}")


def _boot(service: Service) -> None:
    guest = service.guest
    guest.ready("install -m 600 /root/rules.json /root/good.json /etc/gateway/")
    guest.ready("systemctl start gateway")
    shown = service.show()
    assert shown["ActiveState"] == "active", shown
    service.must_route()
    assert until(lambda: service.show()["StatusText"].startswith("routes; uplink wan0"), 10), service.show()
    status = json.loads(guest.ready("gateway status --json"))
    assert status["steering"]
    assert status["refused"] == {}, "the sandbox lets it do all that it wants"
    service.step(f"started as a service: {service.show()['StatusText']}")

    took = guest.reboot()
    service.must_route(90)
    assert service.comes().ok
    service.step(f"rebooted in {took:.0f} s: it routes, and lets its owner in")


def _reload(service: Service) -> None:
    guest = service.guest
    guest.ready("rm /etc/gateway/*")
    service.write()
    guest.ready("systemctl restart gateway")
    service.must_route()
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


def _hang(service: Service) -> None:
    guest = service.guest
    before = service.show()
    guest.ready(f"kill -STOP {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "1" and service.active(), 60), service.show()
    service.must_route()
    service.step("hung: its heartbeat killed it, systemd started it again")
    before = service.show()
    watcher = guest.ready(f"pgrep -P {before['MainPID']} -f watcher.py")
    guest.ready(f"kill -STOP {watcher} {before['MainPID']}")
    assert until(lambda: service.show()["NRestarts"] == "2" and service.active(), 120), service.show()
    assert "Watchdog timeout" in guest.ready("journalctl -b -u gateway --no-pager | grep -i watchdog")
    guest.ready(f"kill -CONT {watcher}")
    service.must_route()
    service.step("hung with its heartbeat's child: systemd's watchdog killed it")


def _stop(service: Service) -> None:
    guest = service.guest
    names = service.whole.names()
    dnsmasq = guest.ready("pgrep dnsmasq")
    guest.ready("systemctl stop gateway")
    assert guest.ready("nft list tables").splitlines() == ["table inet gateway_base"]
    assert service.plain()
    assert guest.ready("pgrep dnsmasq") == dnsmasq
    assert service.whole.names() == names != ""
    guest.ready("systemctl start gateway")
    service.must_route()
    service.step("stopped: a plain router with names; started again")


def _lose_the_uplink(service: Service) -> None:
    guest = service.guest
    guest.carrier("wan0", False)
    assert until(lambda: "no carrier" in service.show()["StatusText"], 30), service.show()
    guest.carrier("wan0", True)
    service.must_route()
    guest.unplug("wan0")
    assert until(lambda: "absent" in service.show()["StatusText"], 30), service.show()
    service.step(f"uplink without a cable, then without its card: {service.show()['StatusText']}")

    took = guest.reboot()
    assert until(service.active, 90), guest.run("journalctl -b --no-pager | tail -50").out
    assert "no uplink" in service.show()["StatusText"]
    assert until(lambda: guest.run("systemctl is-active multi-user.target").code == 0, 60)
    service.step(f"rebooted in {took:.0f} s without the uplink's card: {service.show()['StatusText']}")
    guest.plug("wan0")
    service.must_route(90)
    service.step("the card came: it routes")


def _upgrade(service: Service) -> None:
    guest = service.guest
    streams = [Stream(service.whole.open("tcp", service.whole.client, site)) for site in DIRECT]
    try:
        before = service.show()
        guest.ready("mount -o ro /dev/vdb /mnt && apt-get -q update && apt-get -qy upgrade")
        assert guest.ready("dpkg-query -W -f='${Version}' gateway-router") == NEXT
        assert service.show()["MainPID"] != before["MainPID"], "the new one runs"
        service.must_route()
    finally:
        for stream in streams:
            stream.close()
    assert [stream.error for stream in streams] == ["", ""]
    assert max(stream.gap for stream in streams) < PAUSE
    kilobytes = sum(stream.received for stream in streams) / 1000
    gap = max(stream.gap for stream in streams)
    service.step(f"upgraded to {NEXT} under two direct connections ({kilobytes:.0f} kB, longest gap {gap:.1f} s)")


def _purge(service: Service) -> None:
    guest = service.guest
    guest.ready("apt-get -qy purge gateway-router")
    assert guest.ready("nft list tables") == ""
    assert guest.run("pgrep dnsmasq").code == 1
    assert guest.run("ls -d /etc/gateway /var/lib/gateway /run/gateway /usr/lib/gateway").out == ""
    assert guest.ready("ip -br -4 addr show scope global") == ""
    assert guest.ready("cat /proc/sys/net/ipv4/ip_forward") == "0"
    assert guest.run("systemctl cat gateway").code != 0
    service.step("purged: no table, no address, no process, no file")
