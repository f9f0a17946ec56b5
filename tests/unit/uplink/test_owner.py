"""Who configures an interface, by command lines and by what daemons leave in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.uplink import owner
from gateway.uplink.commandline import clients
from gateway.uplink.owner import Owner, Process


def asked(line: str) -> list[tuple[str, tuple[str, ...]]]:
    return list(clients(line.split()))


@pytest.mark.parametrize(
    ("line", "interfaces"),
    [
        ("dhclient eth0", ("eth0",)),
        ("/sbin/dhclient -4 -v -i -pf /run/dhclient.eth0.pid -lf /l/eth1 -I -df /l/x eth0", ("eth0",)),
        ("dhclient -cf wan lan wan2", ("lan", "wan2")),
        ("dhclient -d", ()),
        ("udhcpc -i wan", ("wan",)),
        ("udhcpc -p /var/run/udhcpc-wan.pid -s /lib/netifd/dhcp.script -f -t 0 -i wan -x hostname:box -C -R", ("wan",)),
        ("busybox udhcpc -fqi wan", ("wan",)),
        ("/bin/busybox udhcpc -fiwan", ("wan",)),
        ("udhcpc --interface wan", ("wan",)),
        ("udhcpc --interface=wan -q", ("wan",)),
        ("udhcpc -t eth1", ("eth0",)),
        ("dhcpcd -q -b wan", ("wan",)),
        ("dhcpcd -B -h box -c /etc/wan wlan0", ("wlan0",)),
        ("dhcpcd", ()),
    ],
)
def test_clients_by_their_words(line: str, interfaces: tuple[str, ...]) -> None:
    (found,) = asked(line)
    assert found[1] == interfaces


@pytest.mark.parametrize(
    ("title", "interfaces"),
    [
        ("dhcpcd: eth0 [ip4] [ip6]", ("eth0",)),
        ("dhcpcd: [manager] [ip4] [ip6]", ()),
        ("dhcpcd: [master] [ip4]", ()),
        ("dhcpcd: [privileged proxy] eth0 [ip4]", ("eth0",)),
    ],
)
def test_dhcpcd_by_its_title(title: str, interfaces: tuple[str, ...]) -> None:
    assert list(clients([title])) == [("dhcpcd", interfaces)]


@pytest.mark.parametrize(
    "line",
    [
        "dhclient -6 eth0", "dhclient -r eth0", "udhcpd -f", "dnsmasq --interface=eth0", "dhcpcd -6 eth0",
        "vim dhclient eth0", "dhcpcd -k eth0",
    ],
)  # fmt: skip
def test_no_clients_of_ipv4(line: str) -> None:
    assert asked(line) == []


@pytest.mark.parametrize("title", ["dhcpcd: [manager] [ip6]", "dhcpcd: [network proxy] [ip4]", "dhcpcd: [BPF ARP]"])
def test_helpers_of_dhcpcd_ask_nothing(title: str) -> None:
    assert list(clients([title])) == []


def made(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def whose(root: Path, *lines: str) -> Owner | None:
    running = [Process(100 + number, tuple(line.split())) for number, line in enumerate(lines)]
    return owner.find("eth0", 7, running, root)


def test_network_manager(tmp_path: Path) -> None:
    root = made(tmp_path, {"run/NetworkManager/devices/7": "[device]\nconnection-uuid=u\nmanaged=true\n"})
    found = whose(root, "/usr/sbin/NetworkManager --no-daemon", "/sbin/dhclient -d eth0")
    assert found == Owner("NetworkManager", 100, "nmcli device set eth0 managed no")
    assert whose(root) is None, "left by one that does not run here"
    made(tmp_path, {"run/NetworkManager/devices/7": "[device]\nmanaged=false\n"})
    assert whose(root, "/usr/sbin/NetworkManager --no-daemon") is None


@pytest.mark.parametrize(
    ("state", "owned"), [("configured", True), ("configuring", True), ("failed", True), ("unmanaged", False)]
)
def test_networkd(tmp_path: Path, state: str, owned: bool) -> None:
    text = f"# private\nADMIN_STATE={state}\nOPER_STATE=routable\nNETWORK_FILE=/etc/systemd/network/10 wired.network\n"
    root = made(tmp_path, {"run/systemd/netif/links/7": text})
    found = whose(root, "/lib/systemd/systemd-networkd")
    assert (found is not None) is owned
    if found is not None:
        assert found.process == 100
        assert "[Match]\\nName=eth0\\n[Link]\\nUnmanaged=yes" in found.release
        assert "networkctl reload" in found.release
    assert whose(root) is None
    assert owner.find("eth0", 8, [Process(1, ("systemd-networkd",))], root) is None, "another link"


NETIFD = """
config interface 'loopback'
	option device 'lo'
	option proto 'static'

config interface 'wan'
	option device 'eth0'
	option proto 'dhcp'

config interface 'spare'
	option device 'eth1'
	option proto 'none'
"""


def test_netifd(tmp_path: Path) -> None:
    found = whose(made(tmp_path, {"etc/config/network": NETIFD}), "/sbin/netifd", "udhcpc -i eth0")
    assert found == Owner("netifd", 100, "uci set network.wan.proto=none && uci commit network && ifup wan")
    assert owner.netifd(NETIFD, "eth1") == ""
    assert owner.netifd(NETIFD, "eth2") == ""


def test_ifupdown(tmp_path: Path) -> None:
    root = made(
        tmp_path,
        {
            "run/network/ifstate": "lo=lo\neth0=home\neth1=eth1\neth2=eth2\n",
            "etc/network/interfaces": "auto lo\niface lo inet loopback\niface home inet dhcp\niface eth1 inet manual\n",
            "etc/network/interfaces.d/more": "iface eth2 inet6 auto\niface eth3 inet static\n",
        },
    )
    assert owner.ifupdown(root) == {"eth0"}


def test_a_client_that_was_given_none_takes_all_but_what_is_denied(tmp_path: Path) -> None:
    assert whose(tmp_path, "dhclient") == Owner("dhclient", 100, "kill 100")
    assert whose(tmp_path, "udhcpc -i eth1", "dhclient eth2") is None
    found = whose(tmp_path, "dhcpcd")
    assert found is not None
    assert "dhcpcd --exit eth0" in found.release
    made(tmp_path, {"etc/dhcpcd.conf": "denyinterfaces eth*\n"})
    assert whose(tmp_path, "dhcpcd") is None
    made(tmp_path, {"etc/connman/main.conf": "[General]\nNetworkInterfaceBlacklist = vmnet,eth0\n"})
    assert whose(tmp_path, "connmand -n") is None
    made(tmp_path, {"etc/connman/main.conf": "[General]\nNetworkInterfaceBlacklist = vmnet,wan\n"})
    found = whose(tmp_path, "connmand -n")
    assert found is not None
    assert "NetworkInterfaceBlacklist=vmnet,wan,eth0" in found.release, "what was left alone stays so"


def test_the_error_says_what_to_write_and_what_to_run() -> None:
    error = owner.LinkOwned("eth0", Owner("NetworkManager", 612, "nmcli device set eth0 managed no"))
    assert "NetworkManager (process 612)" in str(error)
    assert '"external": true' in str(error)
    assert "nmcli device set eth0 managed no" in str(error)


def test_this_process_is_seen_and_a_client_here_is_none_of_ours() -> None:
    seen = owner.processes()
    assert any("pytest" in word for process in seen for word in process.words)
