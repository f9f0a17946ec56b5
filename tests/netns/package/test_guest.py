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
from tests.netns.whole.conftest import PROXIED, until

from .conftest import NEXT
from .guest import Guest
from .service import Service, hung, installed, purged, reloaded, stopped, upgraded

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1800), pytest.mark.xdist_group("bootstrap")]
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


def test_who_owns_the_uplink(guest: Guest) -> None:
    """The line that the refusal names makes each of them let go, and our client starts."""

    def owner() -> dict[str, str] | None:
        ports = {one["name"]: one for one in json.loads(guest.ready("gateway init --json"))["ports"]}
        return ports["wan0"]["owner"]  # type: ignore[no-any-return]

    def uplink() -> dict[str, str]:
        return json.loads(guest.ready("gateway status --json"))["uplinks"][0]  # type: ignore[no-any-return]

    guest.ready(guest.take)
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


class Remote(Service):
    """Reached by SSH too."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        super().__init__(lab, guest)
        self.guest = guest

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


def test_a_router_with_systemd(lab: Lab, guest: Guest) -> None:
    service = Remote(lab, guest)
    service.step(f"booted, Linux {guest.ready('uname -r')}, {guest.ready('systemctl --version | head -1')}")
    for phase in (installed, _trials, _boot, reloaded, hung, stopped, _lose_the_uplink, upgraded, purged):
        phase(service)


def _trials(service: Remote) -> None:
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


def _boot(service: Remote) -> None:
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


def _lose_the_uplink(service: Remote) -> None:
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
