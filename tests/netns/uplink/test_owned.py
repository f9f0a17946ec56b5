"""A link that another program configures: our DHCP client does not start there, `run` goes on, and it is said where a
person looks; it starts once the other has let go. A daemon of another network namespace owns nothing here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.service.control import ask
from tests.instances import forget

from .conftest import Net, peer, sh

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq")]

ROOT = Path(__file__).resolve().parents[3]
NETWORKD = Path("/lib/systemd/systemd-networkd")
# It writes below /run/systemd, which here is a folder of the test's own, and speaks to no bus.
PRIVATE = """
mount -t tmpfs none /run/systemd && mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network /run/systemd/netif
# Where /sys cannot be written it does not wait for udev.
mount -o remount,bind,ro /sys
printf '[Match]\\nName=wan\\n[Network]\\nDHCP=ipv4\\n' > /run/systemd/network/10-wan.network
touch "$1"
while [ ! -e "$1.end" ]; do sleep 0.1; done
"""


class Whole:
    """`gateway run` with one uplink by DHCP, in the router's network namespace."""

    def __init__(self, net: Net, enter: tuple[str, ...] = ()) -> None:
        self.net, self.name, self.enter = net, f"test-{net.router}", enter
        self.path = net.tmp / "gateway.json"
        self.process: subprocess.Popen[bytes] | None = None
        value = {"gateway": {"uplinks": [{"interface": "wan", "dhcp4": {"start_delay": "0s"}}], "firewall": False}}
        self.path.write_text(json.dumps(value))

    def start(self) -> None:
        self.process = self.net.start(self.net.router, *self.enter, *self.words("run", "--instance", self.name),
                                      env={"PYTHONPATH": str(ROOT)})  # fmt: skip
        eventually(lambda: self.status() or None)

    def words(self, *more: str) -> tuple[str, ...]:
        config = ("-c", str(self.path)) if more[0] in ("run", "check") else ()
        return (sys.executable, "-m", "gateway", more[0], *config, *more[1:])

    def command(self, *more: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self.net.router, *self.enter, *self.words(*more)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)

    def status(self) -> dict[str, Any]:
        try:
            return ask(Path("/run/gateway", self.name), {"command": "status"})
        except Exception:
            return {}

    @property
    def uplink(self) -> dict[str, Any]:
        found = self.status().get("uplinks") or [{"problem": "", "owner": "", "ready": False}]
        return dict(found[0])

    def close(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.command("down", "--instance", self.name)
        forget(self.name)


def eventually(what: Callable[[], Any], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.fixture
def whole(net: Net) -> Iterator[Whole]:
    """Not started yet; the ISP's DHCP server answers."""
    net.start(
        net.isp, peer("dnsmasq"), "-k", "--conf-file=/dev/null", "--port=0", "--interface=isp0", "--bind-interfaces",
        "--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,10m", "--no-ping", "--dhcp-authoritative", "--user=root",
        f"--dhcp-leasefile={net.tmp}/dnsmasq.leases", "--log-dhcp", "--log-facility=-",
    )  # fmt: skip
    made = Whole(net)
    yield made
    made.close()


def discovers(net: Net) -> int:
    """How often the DHCP server was asked for an address by our hardware address."""
    return sum(path.read_text().count("DHCPDISCOVER(isp0)") for path in net.tmp.glob("dnsmasq-*.log"))


CLIENTS = {
    "udhcpc": ("busybox", ("udhcpc", "-f", "-i", "wan", "-s", "/bin/true")),
    "dhclient": ("dhclient", ("-d", "-sf", "/bin/true", "-lf", "{tmp}/lf", "-pf", "{tmp}/pf", "wan")),
    "dhcpcd": ("dhcpcd", ("-B", "-4", "-c", "/bin/true", "wan")),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=pytest.mark.peer(program)) for name, (program, _) in CLIENTS.items()]
)
def test_a_client_that_runs_there(net: Net, whole: Whole, kind: str) -> None:
    program, words = CLIENTS[kind]
    net.ip(net.router, "link", "set", "wan", "up")
    # They write below /run and /var/lib.
    alone = 'mount -t tmpfs none /run && mount -t tmpfs none /var/lib && exec "$@"'
    command = [peer(program), *(word.format(tmp=net.tmp) for word in words)]
    client = net.start(net.router, "unshare", "-m", "sh", "-c", alone, "sh", *command)
    eventually(lambda: discovers(net))
    asked = discovers(net)
    whole.start()
    one = eventually(lambda: whole.uplink if whole.uplink["owner"] else None)
    assert one["owner"].startswith(f"{kind} (process ")
    assert '"external": true' in one["problem"]
    assert not one["ready"]
    assert whole.process is not None
    assert whole.process.poll() is None, "run goes on"
    seen = whole.command("status", "--instance", whole.name).stdout
    assert f"uplink wan: {kind} (process " in seen
    checked = whole.command("check", "--host")
    assert f"uplink wan: {kind} (process " in checked.stdout
    assert checked.returncode == 1
    told = json.loads(whole.command("doctor", "--json", "--listen", "0").stdout)["findings"]
    (found,) = [finding for finding in told if finding["name"] == "uplink wan"]
    assert found["remedy"]
    if kind == "udhcpc":
        assert discovers(net) == asked, "nobody else asked meanwhile"
        subprocess.run(["ip", "netns", "exec", net.router, "sh", "-c", found["remedy"]], check=True)
    else:
        os.killpg(client.pid, signal.SIGKILL)
    eventually(lambda: whole.uplink["ready"])
    assert "192.0.2.1" in net.ip(net.router, "route")


@pytest.mark.peer("busybox")
def test_a_client_of_another_network_namespace(net: Net, whole: Whole) -> None:
    """It runs on an interface of the same name and index."""
    other = f"{net.router}-o"
    sh("ip", "netns", "add", other)
    try:
        index = json.loads(net.ip(net.router, "-j", "link", "show", "wan"))[0]["ifindex"]
        net.ip(other, "link", "add", "wan", "index", str(index), "type", "veth", "peer", "name", "far", "index", "99")
        net.ip(other, "link", "set", "wan", "up")
        client = net.start(other, peer("busybox"), "udhcpc", "-f", "-i", "wan", "-s", "/bin/true")
        whole.start()
        eventually(lambda: whole.uplink["ready"])
        assert client.poll() is None
        net.stop(client)
    finally:
        sh("ip", "netns", "del", other)


@pytest.mark.slow
@pytest.mark.skipif(not NETWORKD.exists(), reason="systemd-networkd is not here")
def test_networkd(net: Net, whole: Whole) -> None:
    flag = net.tmp / "private"
    keeper = net.start(net.router, "unshare", "-m", "sh", "-c", PRIVATE, "sh", str(flag))
    eventually(flag.exists)
    whole.enter = ("nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--")
    daemon = net.start(net.router, *whole.enter, str(NETWORKD))
    eventually(lambda: discovers(net))
    whole.start()
    one = eventually(lambda: whole.uplink if whole.uplink["owner"] else None)
    assert one["owner"].startswith("systemd-networkd (process ")
    assert "Unmanaged=yes" in one["problem"]
    assert not one["ready"]
    # A daemon that has gone leaves its files.
    net.stop(daemon)
    eventually(lambda: whole.uplink["ready"])
    Path(f"{flag}.end").touch()
