"""The home scenario: its internet works, seen from the VPS, with the real Shadowsocks servers in front."""

from __future__ import annotations

import datetime
import json
import random
import sys
from collections.abc import Iterator

import pytest

from gateway.cli.lab import programs
from gateway.lab import peer
from gateway.lab.lab import Lab
from gateway.lab.scenario import home, services
from tests import peers

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("home")]
HOME = home.draw(random.SystemRandom())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(home.topology(HOME, programs(), datetime.datetime.now(datetime.UTC))) as made:
        yield made


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_sites_answer_by_name(lab: Lab, scheme: str, family: str) -> None:
    site, vps = HOME.sites[0], HOME.vps
    url = f"{scheme}://{site.names[0]}/hello"
    answer = lab.host("vps").run(
        ["curl", "-sS", "-m", "20", family, "--cacert", lab.shared / "ca.pem", "--data", "12345", url], check=True
    )
    told = answer.json()
    assert told["client"][0] == (vps.ipv4 if family == "-4" else vps.ipv6)
    assert (told["service"], told["ttl"], told["received"], told["path"]) == (scheme, 64, 5, "/hello")
    assert told["sni"] == (site.names[0] if scheme == "https" else None)
    assert told in lab.seen(site.host)


@pytest.mark.parametrize("path", ["/bytes/3000000", "/stream/1"])
def test_long_answers(lab: Lab, path: str) -> None:
    told = lab.host("vps").run(["curl", "-sS", "-m", "20", f"http://{HOME.sites[1].ipv4}{path}"], check=True).out
    assert len(told) == 3000000 if "bytes" in path else told.split() == [str(beat) for beat in range(10)]


@pytest.mark.parametrize("address", [HOME.sites[2].ipv4, HOME.sites[2].ipv6], ids=["ipv4", "ipv6"])
def test_quic_and_udp(lab: Lab, address: str) -> None:
    site, vps = HOME.sites[2], lab.host("vps")
    mine = HOME.vps.ipv6 if ":" in address else HOME.vps.ipv4
    client = [sys.executable, "-m", "gateway.lab.client.http3", "--ca", lab.shared / "ca.pem", "--connect", address]
    told = vps.run([*client, f"https://{site.names[0]}/x"], check=True).json()
    assert (told["client"][0], told["host"], told["path"]) == (mine, site.names[0], "/x")
    client = [sys.executable, "-m", "gateway.lab.client.udp", "--port", "5555", address, "7"]
    told = vps.run(client, check=True).json()["answer"]
    assert (told["client"], told["ttl"], told["text"]) == ([mine, 5555], 64, "ping 0")


def test_two_names_have_one_address(lab: Lab) -> None:
    site = HOME.sites[-1]
    for name in site.names:
        for server in (HOME.isp4, HOME.resolver.ipv4, HOME.resolver.ipv6):
            told = lab.host("isp").run(["dig", "+short", "+time=5", f"@{server}", name, "A", name, "AAAA"], check=True)
            assert told.out.split() == [site.ipv4, site.ipv6]


def test_the_isp_leases_addresses_and_says_when_to_renew(lab: Lab) -> None:
    """busybox's client asks and only prints; the router's address stays the gateway's work."""
    script = lab.shared / "told.sh"
    peer.script(script, "env\n")
    client = [peers.path("udhcpc"), "-f", "-n", "-q", "-i", "wan", "-O", "58", "-O", "59", "-s", script]
    asked = lab.host("router").run(client, timeout=60, check=True)
    told = dict(line.split("=", 1) for line in asked.out.splitlines() if "=" in line)
    low, high = (int(text.rpartition(".")[2]) for text in HOME.pool)
    assert low <= int(told["ip"].rpartition(".")[2]) <= high
    assert (told["router"], told["dns"], told["lease"]) == (HOME.isp4, HOME.isp4, "120")
    assert (told["opt58"], told["opt59"]) == ("00000005", "0000000c")
    leases = (lab.service_folder("isp", "dnsmasq") / "leases").read_text()
    assert f"{HOME.wan_mac} {told['ip']} " in leases


@pytest.mark.peer("shadowsocks-libev")
def test_shadowsocks_libev_serves(lab: Lab) -> None:
    command = [peers.path("ss-local"), "-s", HOME.vps.ipv4, "-p", str(services.SHADOWSOCKS_PORT), "-b", "127.0.0.1"]
    command += ["-l", "1080", "-k", HOME.shadowsocks_password, "-m", services.SHADOWSOCKS_METHOD]
    through(lab, command)


@pytest.mark.peer("sing-box")
def test_xray_serves_what_sing_box_speaks(lab: Lab) -> None:
    outbound = {"type": "shadowsocks", "server": HOME.vps.ipv6, "server_port": services.SHADOWSOCKS_2022_PORT}
    outbound |= {"method": services.SHADOWSOCKS_2022_METHOD, "password": HOME.shadowsocks_2022_password}
    inbound = {"type": "mixed", "listen": "127.0.0.1", "listen_port": 1080}
    file = lab.shared / "sing-box.json"
    file.write_text(json.dumps({"inbounds": [inbound], "outbounds": [outbound]}))
    through(lab, [peers.path("sing-box"), "run", "-c", file])


def through(lab: Lab, command: list[object]) -> None:
    """A site sees the VPS when asked through a local SOCKS server that ``command`` runs on another site."""
    host, site = lab.host("site1"), HOME.sites[3]
    running = host.popen([str(word) for word in command])
    host.wait_listening([("tcp", 1080)], running)
    url = f"http://{site.names[0]}/"
    words = ["curl", "-sS", "-m", "20", "-x", "socks5h://127.0.0.1:1080", url]
    result = host.run(words)
    if "bad request salt" in running.told():
        # sing-box notes the salt of a request when it has sent it, and on a busy machine the answer is there before.
        result = host.run(words)
    assert result.ok, f"{result.err}\n{running.told()}\n{[service.told() for service in lab.services.values()][-3:]}"
    told = result.json()
    running.kill()
    assert told["client"][0] in (HOME.vps.ipv4, HOME.vps.ipv6)
