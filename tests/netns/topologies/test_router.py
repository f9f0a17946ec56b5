"""A router whose LAN is a bridge of ports; one comes late, as a USB adapter does, and the uplink comes and goes."""

from __future__ import annotations

import json

import pytest

from .conftest import LATE, PHONE, UPLINK, WAN, Place, poll

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq"), pytest.mark.peer("busybox")]


def links(place: Place) -> dict[str, str]:
    """The box's interfaces, each with its bridge."""
    rows = place.host("box").run(["ip", "-j", "link"]).json()
    return {row["ifname"]: row.get("master", "") for row in rows}


@pytest.mark.slow
def test_ports_come_late_and_go(place: Place) -> None:
    # eth0 is configured already, by hand: it is ours from here on.
    place.host("box").run(["ip", "addr", "flush", "dev", "eth0"], check=True)
    words = ("--uplink", "eth0", "--kind", "dhcp4", "--lan", "lan0,usb0", "--lan-address", "192.168.44.1/24")
    found = place.init("box", "--topology", "router", *words)
    assert found["lans"][0]["ports"] == ["lan0", "usb0"]
    before = links(place)
    place.start()
    poll(lambda: place.status()["uplinks"][0]["ready"])
    assert links(place)["lan0"] == "br-lan"
    poll(lambda: "without usb0" in place.status()["problems"].get("br-lan", ""))
    tv = place.lease("tv")
    assert tv.startswith("192.168.44.1")
    assert place.ask("tv", "198.51.100.1") == WAN[4]
    mac = place.host("box").run(["ip", "-j", "link", "show", "br-lan"]).json()[0]["address"]

    place.lab.connect(LATE)
    poll(lambda: links(place).get("usb0") == "br-lan")
    pad = place.lease("pad")
    assert place.ask("pad", "198.51.100.1") == WAN[4]
    assert place.ask("pad", "198.51.100.2") == "198.51.100.2"
    told = json.loads(place.command("devices", "--json", "--instance", place.instance).out)["devices"]
    assert {one["address"] for one in told} == {tv, pad}
    assert all(one["mac"] and 0 < one["since"] < one["until"] for one in told)
    assert tv in place.command("devices", "--instance", place.instance).out
    place.lab.disconnect("box", "usb0")
    poll(lambda: "without usb0" in place.status()["problems"].get("br-lan", ""))
    place.lab.connect(LATE)
    poll(lambda: links(place).get("usb0") == "br-lan")
    assert place.host("box").run(["ip", "-j", "link", "show", "br-lan"]).json()[0]["address"] == mac

    place.lab.disconnect("box", "eth0")
    poll(lambda: place.status()["uplinks"][0]["problem"] == "interface is absent")
    place.lab.connect(UPLINK)
    poll(lambda: place.status()["uplinks"][0]["ready"])
    poll(lambda: place.ask("tv", "198.51.100.1") == WAN[4])
    assert place.ask("phone", "198.51.100.1") == WAN[4], PHONE

    place.kill()
    assert place.ask("tv", "198.51.100.1") == WAN[4]
    place.start()
    assert links(place)["lan0"] == "br-lan"
    place.end()
    assert links(place) == {**before, "usb0": ""}
