"""``urltest`` beside sing-box: the same configuration, the same members becoming slow, dying and coming back."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.interop.downloads import Web
from tests.interop.harness import DEADLINE, LOOPBACK, encode, exactly, free_port
from tests.interop.proxies import certificates
from tests.interop.running import both, documented, ours, told, until
from tests.interop.teller import Teller, sent


class Member(Teller):
    """A Teller that reaches one web server, after ``delay`` seconds. ``close`` and ``open`` may alternate."""

    def __init__(self, tag, web, port=0):
        self.web, self.delay = web, 0.0
        super().__init__(tag, port=port)

    def _one(self, sock):
        with sock, contextlib.suppress(OSError, AssertionError):
            sock.settimeout(DEADLINE)
            exactly(sock, exactly(sock, 2)[1])
            sock.sendall(b"\x05\x00")
            head = exactly(sock, 4)
            host = socket.inet_ntop(socket.AF_INET, exactly(sock, 4)) if head[3] == 1 else exactly(
                sock, exactly(sock, 1)[0]).decode()  # fmt: skip
            port = int.from_bytes(exactly(sock, 2))
            if port == self.web.port:
                time.sleep(self.delay)
            sock.sendall(b"\x05\x00\x00" + encode(self.host, self.port))
            if port == self.web.port:
                self._carry(sock)
            elif head[1] == 1 and sock.recv(65536):
                sock.sendall(self._word((host, port)))
            while sock.recv(65536):
                pass

    def _carry(self, sock):
        with socket.create_connection((LOOPBACK, self.web.port), DEADLINE) as far:

            def back():
                with contextlib.suppress(OSError):
                    while data := far.recv(65536):
                        sock.sendall(data)

            threading.Thread(target=back, daemon=True).start()
            while data := sock.recv(65536):
                far.sendall(data)


@contextlib.contextmanager
def members(web, *tags):
    found = {tag: Member(tag, web) for tag in tags}
    try:
        yield found
    finally:
        for one in found.values():
            one.close()


def configuration(port, there, web, scheme="http", **group):
    config = documented("protocol/urltest.md", "urltest")
    config["inbounds"] = [{"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": port}]
    for outbound, member in zip(config["outbounds"][1:], there.values(), strict=True):
        outbound |= {"server": member.host, "server_port": member.port}
    config["outbounds"][0] |= {"url": f"{scheme}://{LOOPBACK}:{web.port}/", "interval": "1s", **group}
    return config


def story(port, there, web):
    """What the group uses, one after another, each once it is steady."""
    near, far = there.values()
    seen = []

    def steady(wanted):
        """Until a flow ends at ``wanted``, then what three intervals of flows say."""
        until(lambda: told(port) == wanted, 20)
        end, found = time.monotonic() + 3, []
        while time.monotonic() < end:
            found.append(told(port))
            time.sleep(0.2)
        seen.append((wanted, sorted(set(found))))

    near.delay, far.delay = 0.4, 0.0
    steady("far")
    near.delay, far.delay = 0.0, 0.02  # within the tolerance
    steady("far")
    near.delay, far.delay = 0.0, 0.4
    steady("near")
    near.close()
    steady("far")
    there["near"] = near = Member("near", web, near.port)
    steady("near")
    return seen


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_same_as_sing_box(tmp_path):
    seen = {}
    for name, run, folder in both(tmp_path):
        with Web() as web, members(web, "near", "far") as there:
            there["near"].delay = 0.4
            port = free_port()
            with run(configuration(port, there, web), port, folder):
                seen[name] = story(port, there, web)
            assert {words["Host"] for _, words in web.asked} == {f"{LOOPBACK}:{web.port}"}
    assert seen["ours"] == seen["theirs"]
    assert all(steady == [wanted] for wanted, steady in seen["ours"]), seen


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_probes_end_when_nobody_uses_it_and_begin_again(tmp_path):
    counts = {}
    for name, run, folder in both(tmp_path):
        with Web() as web, members(web, "near", "far") as there:
            port = free_port()
            with run(configuration(port, there, web, idle_timeout="1s"), port, folder):
                until(lambda web=web: len(web.asked) == 2)
                time.sleep(2.5)
                first = len(web.asked)
                assert told(port) in ("near", "far")
                until(lambda web=web, first=first: len(web.asked) > first)
                time.sleep(3)
                second = len(web.asked)
                time.sleep(2.5)
                counts[name] = first, second > first, len(web.asked) == second
    assert counts["ours"] == counts["theirs"] == (2, True, True)


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_before_anything_has_answered(tmp_path):
    """The first member, in both; and who carries UDP is chosen among those that do."""
    seen = {}
    for name, run, folder in both(tmp_path):
        with Web() as web, members(web, "near", "far") as there:
            port = free_port()
            config = configuration(port, there, web)
            config["outbounds"][0]["url"] = f"http://{LOOPBACK}:{free_port()}/"
            config["outbounds"][1]["network"] = "tcp"
            with run(config, port, folder):
                time.sleep(1.5)
                seen[name] = told(port), sent(port, "198.51.100.7", 7)[1].partition(" ")[0]
    assert seen["ours"] == seen["theirs"] == ("near", "far")


@pytest.mark.slow
def test_what_a_person_sees_and_asks_for(tmp_path):
    """Over TLS, by a certificate that the system trusts: delays in groups and status, a check when asked; a change ends
    flows of the former member."""
    with certificates() as files, Web(tls=files.serving()) as web, members(web, "near", "far") as there:
        port = free_port()
        fields = {"interval": "20m", "interrupt_exist_connections": True}
        config = configuration(port, there, web, "https", **fields)
        with ours(config, port, tmp_path, env=[f"SSL_CERT_FILE={files.ca}"]) as gateway:
            until(lambda: all(one["delay"] for one in gateway.ask("groups")["groups"][0]["members"]))
            assert gateway.cli("groups").startswith("urltest auto: *near ")
            assert "urltest auto: *near " in gateway.cli("status")
            with socket.create_connection((LOOPBACK, port), DEADLINE) as flow:
                flow.sendall(b"\x05\x01\x00\x05\x01\x00" + encode("198.51.100.7", 80))
                exactly(flow, 12)
                flow.sendall(b"?")
                assert flow.recv(100).startswith(b"near")
                there["near"].delay = 0.5
                assert "*far" in gateway.cli("urltest", "auto")
                with contextlib.suppress(ConnectionResetError):
                    assert flow.recv(100) == b""
            assert told(port) == "far"
        with ours(config, port, tmp_path) as gateway:
            time.sleep(1)
            assert [one["delay"] for one in gateway.ask("groups")["groups"][0]["members"]] == [None, None]
            assert told(port) == "near"


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_groups_within_groups(tmp_path):
    """A group is as quick as the outbound at its end, and flows find the way down."""
    seen = {}
    for name, run, folder in both(tmp_path):
        with Web() as web, members(web, "near", "far") as there, members(web, "third") as more:
            there["near"].delay, more["third"].delay = 0.5, 1.0
            port = free_port()
            config = configuration(port, there, web)
            third = more["third"]
            config["outbounds"] += [
                {"type": "socks", "tag": "third", "server": third.host, "server_port": third.port},
                {"type": "selector", "tag": "pick", "outbounds": ["auto"]},
                {**config["outbounds"][0], "tag": "outer", "outbounds": ["third", "pick"]},
            ]
            config["route"] = {"final": "outer"}
            with run(config, port, folder) as gateway:
                found = []
                for slow, wanted in (("near", "far"), ("far", "near")):
                    there[slow].delay, there[wanted].delay = 0.5, 0.0
                    until(lambda port=port, wanted=wanted: told(port) == wanted, 30)
                    found.append(told(port))
                if name == "ours":
                    groups = {one["tag"]: one for one in gateway.ask("groups")["groups"]}
                    assert [groups[tag]["now"] for tag in ("outer", "pick", "auto")] == ["pick", "auto", "near"]
                    delays = {one["tag"]: one["delay"] for one in groups["outer"]["members"]}
                    assert delays["pick"] < 500 <= delays["third"]
                seen[name] = found
    assert seen["ours"] == seen["theirs"] == ["far", "near"]
