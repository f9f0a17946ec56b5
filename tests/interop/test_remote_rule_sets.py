"""Remote rule sets: the same configuration for sing-box and for us; web servers that answer well, badly, not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import peers
from tests.instances import instance
from tests.interop.downloads import Web
from tests.interop.harness import DEADLINE, LOOPBACK, free_port
from tests.interop.proxies import certificates
from tests.interop.running import ROOT, both, documented, ours, sing_box, told, until
from tests.interop.teller import tellers

PORTS = {"near": 7001, "far": 7002, "other": 7003}
"""What rules ask for: the sets name ports, so that no name must be resolved."""


def source(*ports):
    return json.dumps({"version": 3, "rules": [{"port": [PORTS[name] for name in ports]}]}).encode()


def binary(folder, *ports):
    """As sing-box compiles it."""
    (folder / "set.json").write_bytes(source(*ports))
    made = folder / f"{'-'.join(ports)}.srs"
    command = [peers.path("sing-box"), "rule-set", "compile", folder / "set.json", "-o", made]
    subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True)
    return made.read_bytes()


def configuration(port, there, url, **more):
    """Of ``docs/rule-sets.md``, with the addresses of a test."""
    config = documented("rule-sets.md", "Remote rule sets")
    config["inbounds"] = [{"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": port}]
    config["outbounds"] = [
        {"type": "socks", "tag": tag, "server": one.host, "server_port": one.port} for tag, one in there.items()
    ] + [{"type": "direct", "tag": "direct"}]
    config["route"]["rule_set"][0] |= {"url": url, "download_detour": "direct", "update_interval": "1s", **more}
    return config


def ways(port):
    return {name: told(port, target=number) for name, number in PORTS.items()}


PROXIED = {"near": "plain", "far": "plain", "other": "plain"}


@pytest.mark.slow
@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("form", ["srs", "json"])
def test_same_as_sing_box(tmp_path, form):
    """Both download the set, ask again by its ETag, and go by the new one when the server has one."""

    def made(*names):
        return binary(tmp_path, *names) if form == "srs" else source(*names)

    with tellers("listed", "plain") as there, Web(made("near")) as web:
        port = free_port()
        config = configuration(port, there, f"http://{LOOPBACK}:{web.port}/some.{form}?v=1", format="")
        config["route"]["rule_set"][0]["format"] = "binary" if form == "srs" else "source"
        seen = {}
        for name, run, folder in both(tmp_path):
            web.body, web.asked = made("near"), []
            with run(config, port, folder):
                first = until(lambda: ways(port) if told(port, target=PORTS["near"]) == "listed" else None)
                until(lambda: len(web.asked) >= 3)
                assert not any("If-None-Match" in words for _, words in web.asked[:1])
                assert all("If-None-Match" in words for _, words in web.asked[1:3])
                web.body = made("far", "other")
                second = until(lambda: ways(port) if told(port, target=PORTS["far"]) == "listed" else None)
                # sing-box goes by a set before it has written it; whoever asks again has.
                asked = len(web.asked)
                until(lambda: len(web.asked) > asked + 1)  # noqa: B023
            web.body = b"nothing that is a rule set"
            with run(config, port, folder):
                third = ways(port)
            seen[name] = first, second, third
        listed = dict.fromkeys(PORTS, "listed")
        assert seen["ours"] == seen["theirs"]
        assert seen["ours"][0] == PROXIED | {"near": "listed"}
        assert seen["ours"][1] == seen["ours"][2] == listed | {"near": "plain"}


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_a_server_that_is_not_there_stops_nothing(tmp_path):
    """sing-box does not start; we do, say that the set is not here, and take it when it comes."""
    port, place = free_port(), free_port()
    with tellers("listed", "plain") as there, instance(port) as name:
        url = f"http://user:secret@{LOOPBACK}:{place}/some.json"
        config = configuration(port, there, url)
        del config["experimental"]
        with pytest.raises(AssertionError), sing_box(config, port, tmp_path):
            pass
        with ours(config, port, tmp_path, name) as gateway:
            assert ways(port) == PROXIED
            state = until(lambda: [one for one in gateway.ask("status")["rule_sets"] if one["error"]])[0]
            assert (state["tag"], state["size"], state["age"]) == ("some", None, None)
            assert "no copy yet, it matches nothing; asked for in" in gateway.cli("status")
            assert 'rule set "some" has no copy yet' in gateway.cli("explain", LOOPBACK, "--port", "7001")
            file = gateway.process.log.with_name("config.json")
            command = [sys.executable, "-m", "gateway", "check", "-c", file, "--instance", name]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
            assert done.returncode == 0
            assert 'rule set "some" has no copy yet' in done.stderr
            with Web(source("near"), port=place) as web:
                until(lambda: told(port, target=PORTS["near"]) == "listed")
                assert web.asked[0][1]["Authorization"] == "Basic dXNlcjpzZWNyZXQ="
            assert "KB" not in str(gateway.ask("status")["rule_sets"])
            assert gateway.ask("status")["rule_sets"][0]["size"] == len(source("near"))
            assert "no copy" not in gateway.cli("explain", LOOPBACK, "--port", "7001")
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
            assert "secret" not in gateway.log
        with ours(config, port, tmp_path, name):
            assert ways(port) == PROXIED | {"near": "listed"}, "the copy counts from the first flow on"


BAD = {
    "no-rule-set": {"body": b"<html>welcome to the hotel</html>"},
    "cut-inside": {"body": -7},
    "cut-short": {"cut": 10},
    "not-found": {"status": 404},
    "too-large": {"body": b"SRS\3" + bytes(65 << 20)},
    "later-version": {"body": b"SRS\x09rest"},
}


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_a_bad_download_keeps_what_was_good(tmp_path):
    with tellers("listed", "plain") as there, Web(binary(tmp_path, "near")) as web:
        port = free_port()
        good = binary(tmp_path, "far")
        with ours(configuration(port, there, f"http://{LOOPBACK}:{web.port}/some.srs"), port, tmp_path) as gateway:
            until(lambda: told(port, target=PORTS["near"]) == "listed")
            said = {}
            for name, bad in BAD.items():
                before = gateway.log.count("rule set some: ")
                web.status, web.cut = bad.get("status", 200), bad.get("cut", 0)
                body = bad.get("body", good)
                web.body = good[:body] if isinstance(body, int) else body
                until(lambda before=before: gateway.log.count("WARNING gateway.rule_set: rule set some: ") > 0 and
                      gateway.log.count("rule set some: ") > before + 1)  # fmt: skip
                said[name] = gateway.ask("status")["rule_sets"][0]["error"]
                assert ways(port) == PROXIED | {"near": "listed"}, name
            assert all(said.values()), said
            assert "over 64 MiB" in said["too-large"]
            assert "404" in said["not-found"]
            web.status, web.cut, web.body = 200, 0, good
            until(lambda: told(port, target=PORTS["far"]) == "listed")
            assert gateway.ask("status")["rule_sets"][0]["error"] == ""


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_https_through_a_detour_and_a_redirect(tmp_path):
    """The server is reached by a sing-box alone; what it gives is dated, and moved. Whom nobody vouches for gives us
    nothing."""
    relay = free_port()
    through = {
        "inbounds": [{"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": relay}],
        "outbounds": [{"type": "direct", "tag": "direct"}],
    }
    with certificates() as files, tellers("listed", "plain") as there, Web(source("near"), files.serving()) as web:
        port = free_port()
        web.target, web.dated = "/elsewhere/some.json", "Thu, 01 Jan 2026 00:00:00 GMT"
        url = f"https://{LOOPBACK}:{web.port}/moved/some.json"
        config = configuration(port, there, url, download_detour="relay")
        config["outbounds"].append({"type": "socks", "tag": "relay", "server": LOOPBACK, "server_port": relay})
        with ours(config, port, tmp_path) as gateway:
            with sing_box(through, relay, tmp_path):
                until(lambda: "not known here" in gateway.ask("status")["rule_sets"][0]["error"])
                assert gateway.ask("status")["rule_sets"][0]["size"] is None
            assert not web.asked
        with ours(config, port, tmp_path, env=[f"SSL_CERT_FILE={files.ca}"]):
            time.sleep(0.5)
            assert told(port, target=PORTS["near"]) == "plain", "there is no way but the detour"
            with sing_box(through, relay, tmp_path):
                until(lambda: told(port, target=PORTS["near"]) == "listed")
                until(lambda: [one for one in web.asked if "If-Modified-Since" in one[1]])
        assert [path for path, _ in web.asked[:2]] == ["/moved/some.json", "/elsewhere/some.json"]
