"""What ``gateway init`` proposes for the ports of a host, and that every file it writes is taken by ``check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import init, main, proposal
from gateway.cli.proposal import TOPOLOGIES, Around, Wish, file, pool_of, propose
from gateway.config.text import parse
from gateway.core.errors import GatewayError
from gateway.uplink.inventory import Port
from gateway.uplink.owner import Owner

NM = Owner("NetworkManager", 612, "nmcli device set eth0 managed no")
WAN = Port("eth0", 2, "00:53:00:00:00:01", driver="igc", addresses=("192.168.8.20/24", "2001:db8:1::20/64"),
           dynamic=frozenset(("192.168.8.20/24", "2001:db8:1::20/64")), gateways=("192.168.8.1", "fe80::1"),
           metric=100)  # fmt: skip
LAN = Port("eth1", 3, "00:53:00:00:00:02", driver="igc")
SPARE = Port("eth2", 4, "00:53:00:00:00:03", driver="igc", link="no carrier")
DOCKER = (Port("docker0", 9, "02:42:00:00:00:01", kind="bridge", addresses=("172.17.0.1/16",)),
          Port("veth0a1b2c3", 10, "02:42:00:00:00:02", kind="veth", bridge="docker0"))  # fmt: skip
FIXED = Port("eth0", 2, "00:53:00:00:00:01", addresses=("192.168.1.2/24", "2001:db8::2/64"),
             gateways=("192.168.1.1", "fe80::1"))  # fmt: skip
OWNED = Port(
    "eth0", 2, "00:53:00:00:00:01", addresses=WAN.addresses, dynamic=WAN.dynamic, gateways=WAN.gateways, owner=NM
)
BOX = (WAN, LAN, SPARE, *DOCKER)
AROUND = Around(dns=("192.0.2.53",))
NOTHING = Wish()


def written(ports: tuple[Port, ...], wish: Wish = NOTHING, around: Around = AROUND) -> dict[str, Any]:
    """The ``gateway`` object of the file, which has been judged."""
    text = file(propose(ports, wish, around), around)
    init.judge(text, None)
    assert "//" in text
    value: dict[str, Any] = parse(text, "gateway.json")
    return dict(value["gateway"])


def test_two_ports_are_a_router() -> None:
    """The LAN's network is none that the uplink is in already; ports of others are let be."""
    found = written(BOX)
    assert found["uplinks"] == [{"interface": "eth0", "dhcp4": {}}]
    assert found["lans"] == [{"interface": "eth1", "address": ["192.168.18.1/24"],
                              "dhcp_server": {"range": ["192.168.18.100", "192.168.18.199"]}}]  # fmt: skip


def test_several_lan_ports_are_a_bridge_and_the_addresses_are_a_persons() -> None:
    wish = Wish(lan=("eth1", "eth2", "usb0"), lan_address=("10.0.0.129/25", "2001:db8:8::1/64"))
    (lan,) = written(BOX, wish)["lans"]
    assert (lan["interface"], lan["ports"]) == ("br-lan", ["eth1", "eth2", "usb0"])
    assert lan["address"] == ["10.0.0.129/25", "2001:db8:8::1/64"]


def test_an_owned_uplink_is_external_and_asked_for_otherwise_is_told_how() -> None:
    found = propose((OWNED, LAN), Wish(), AROUND)
    assert found.uplink == {"interface": "eth0", "external": True}
    found = propose((OWNED, LAN), Wish(way="dhcp4"), AROUND)
    assert found.uplink == {"interface": "eth0", "dhcp4": {}}
    assert any("nmcli device set eth0 managed no" in note for note in found.notes)


@pytest.mark.parametrize("port", [FIXED, OWNED])
def test_one_port_is_a_side_router_that_gives_no_leases(port: Port) -> None:
    found = written((port,), Wish(topology="side-router"))
    assert found["lans"] == [{"interface": "eth0"}]
    (uplink,) = found["uplinks"]
    assert "dhcp4" not in uplink
    if port is FIXED:
        assert uplink["static"] == {"address": ["192.168.1.2/24", "2001:db8::2/64"],
                                    "gateway": ["192.168.1.1", "fe80::1"], "dns": ["192.0.2.53"]}  # fmt: skip
    else:
        assert uplink == {"interface": "eth0", "external": True}


def test_beside_a_firewall_flows_are_steered_and_nothing_is_set() -> None:
    bridge = Port("br-lan", 5, "00:53:00:00:00:02", kind="bridge", addresses=("192.168.1.1/24",), ports=("eth1",))
    found = written((WAN, Port("eth1", 3, "00:53:00:00:00:02", bridge="br-lan"), bridge), Wish(),
                    Around(forwarding=True, firewall="fw4"))  # fmt: skip
    assert found["firewall"] is False
    assert found["uplinks"] == [{"interface": "eth0", "external": True}]
    assert found["lans"] == [{"interface": "br-lan"}]


def test_a_desktop_steers_what_starts_on_it() -> None:
    found = written((OWNED,))
    assert "lans" not in found
    assert found["firewall"] is False


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("way", proposal.WAYS)
def test_whatever_is_asked_for_is_taken_by_check(topology: str, way: str) -> None:
    assert written((FIXED, LAN), Wish(topology=topology, way=way))


@pytest.mark.parametrize(
    ("ports", "wish", "said"),
    [
        ((), Wish(), "no network port"),
        ((WAN,), Wish(topology="router"), "side-router"),
        ((WAN, LAN), Wish(lan=("eth0",)), "eth0 is the uplink"),
        ((WAN, LAN), Wish(lan_address=("192.168.8",)), "--lan-address"),
        (DOCKER, Wish(), "no network port"),
        ((WAN, *DOCKER), Wish(uplink="veth0a1b2c3"), "name the bridge"),
        ((LAN,), Wish(topology="side-router"), "--address"),
        ((WAN,), Wish(topology="steering"), "--lan"),
    ],
)
def test_what_cannot_be_proposed_says_what_to_do(ports: tuple[Port, ...], wish: Wish, said: str) -> None:
    with pytest.raises(GatewayError, match=said):
        propose(ports, wish, AROUND)


@pytest.mark.parametrize(
    ("address", "pool"),
    [
        ("192.168.8.1/24", ["192.168.8.100", "192.168.8.199"]),
        ("10.0.0.1/8", ["10.0.0.100", "10.0.0.199"]),
        ("192.168.8.150/24", ["192.168.8.100", "192.168.8.149"]),
        ("192.0.2.1/28", ["192.0.2.8", "192.0.2.14"]),
        ("192.0.2.1/30", []),
    ],
)
def test_the_range_of_leases(address: str, pool: list[str]) -> None:
    assert pool_of(proposal.IPv4Interface(address)) == pool


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    async def look() -> list[Port]:
        return [*BOX]

    monkeypatch.setattr(init, "look", look)
    monkeypatch.setattr(init, "_firewall", lambda: "")
    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_is_written_once(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    text = (host / "gateway.json").read_text()
    assert main(["check", "-c", "gateway.json"]) == 0
    assert main(["init", "--topology", "local"]) == 1
    assert "--force" in capsys.readouterr().err
    assert (host / "gateway.json").read_text() == text
    assert main(["init", "--topology", "local", "--force"]) == 0
    assert (host / "gateway.json").read_text() != text
    assert [path.name for path in host.iterdir()] == ["gateway.json"]


def test_json_is_one_document_and_writes_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [port["name"] for port in told["ports"]] == [port.name for port in BOX]
    assert told["ports"][0]["default_route"] == ["192.168.8.1", "fe80::1"]
    assert told["proposal"]["topology"] == "router"
    assert parse(told["proposal"]["text"], "") == told["proposal"]["configuration"]
    assert told["from"] is None
    assert not [*host.iterdir()]


def test_beside_a_sing_box_file_only_the_gateway_is_written(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "home.json").write_text(json.dumps({
        "dns": {"servers": [{"type": "udp", "tag": "d", "server": "192.0.2.53"}]},
        "outbounds": [{"type": "socks", "tag": "p", "server": "192.0.2.9", "server_port": 1080}],
        "route": {"rules": [{"domain_suffix": ".example", "outbound": "p"}]},
    }))  # fmt: skip
    assert main(["init", "--from", "home.json", "-o", "more.json"]) == 0
    assert [*parse((host / "more.json").read_text(), "")] == ["gateway"]
    assert "-c home.json -c more.json" in capsys.readouterr().err
    assert main(["check", "-c", "home.json", "-c", "more.json"]) == 0


def test_all_that_is_not_built_is_told(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "home.json").write_text(json.dumps({
        "experimental": {"debug": {"listen": "127.0.0.1:1"}},
        "inbounds": [{"type": "cloudflared", "tag": "i"}, {"type": "mixed", "listen_port": 1}],
        "outbounds": [{"type": "direct", "tag": "d"}, {"type": "tor", "tag": "p"}],
        "route": {"rules": [{"domain": "www.example", "outbound": "p"}], "final": "p"},
    }))  # fmt: skip
    found = init.unbuilt(init.read(["home.json"])[0])
    assert found
    assert all("home.json" in line for line in found)
    assert main(["init", "--from", "home.json", "--json", "-o", "more.json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["from"]["problems"] == found
    assert (host / "more.json").exists()


def test_a_person_is_asked_for_what_is_open(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["", "", "eth1,eth2", ""])
    asked: list[str] = []

    def answer(what: str, proposed: str) -> str:
        asked.append(what)
        return next(answers) or proposed

    monkeypatch.setattr(init, "question", answer)
    wish = init.ask(BOX, Wish(), AROUND)
    assert wish == Wish(topology="router", uplink="eth0", lan=("eth1", "eth2"), lan_address=("192.168.18.1/24",))
    assert len(asked) == 4
    assert init.ask(BOX, Wish(topology="local", uplink="eth0"), AROUND) == Wish(topology="local", uplink="eth0")
