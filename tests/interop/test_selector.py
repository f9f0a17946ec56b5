"""``selector`` in a whole gateway: who chooses, and what is remembered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.interop.harness import LOOPBACK, free_port
from tests.interop.running import ROOT, documented, ours, sing_box, told
from tests.interop.teller import tellers


def configuration(port, there, cache=None, **group):
    outbounds = [
        {"type": "selector", "tag": "pick", "outbounds": list(there), **group},
        *({"type": "socks", "tag": tag, "server": one.host, "server_port": one.port} for tag, one in there.items()),
    ]
    config = {
        "inbounds": [{"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": port}],
        "outbounds": outbounds,
        "route": {"final": "pick"},
    }
    return config if cache is None else {**config, "experimental": {"cache_file": {"enabled": True, **cache}}}


@pytest.mark.slow
def test_a_choice_outlives_sigkill(tmp_path):
    """Of each ``cache_id`` its own; without a cache file the default is back."""
    port = free_port()
    with tellers("a", "b", "c") as there:
        cache = documented("configuration.md", "What outlives the process")["experimental"]["cache_file"]
        with ours(configuration(port, there, cache, default="b"), port, tmp_path) as gateway:
            assert told(port) == "b"
            assert gateway.cli("groups") == "selector pick: a, *b, c\n"
            assert gateway.cli("select", "pick", "c") == ""
            assert told(port) == "c"
            assert gateway.cli("groups") == "selector pick: a, b, *c\n"
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
        assert (tmp_path / "cache.db").stat().st_mode & 0o777 == 0o600
        for other, wanted in (({"cache_id": "home"}, "c"), ({"cache_id": "work"}, "b"), (None, "b")):
            with ours(configuration(port, there, other, default="b"), port, tmp_path):
                assert told(port) == wanted, other
        (tmp_path / "cache.db").write_bytes(b"\0" * 5000)
        with ours(configuration(port, there, cache, default="b"), port, tmp_path) as gateway:
            assert told(port) == "b"
            assert "cache.db.broken" in gateway.log


def test_what_cannot_be_chosen_is_said(tmp_path):
    port = free_port()
    with tellers("a", "b") as there, ours(configuration(port, there), port, tmp_path) as gateway:
        for words, said in ((("pick", "z"), "members: a, b"), (("a", "b"), "selectors: pick")):
            command = [sys.executable, "-m", "gateway", "select", *words, "--instance", gateway.instance]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 1
            assert said in done.stderr
        assert told(port) == "a"


@pytest.mark.peer("sing-box")
def test_sing_boxs_own_file_is_kept(tmp_path):
    """The same configuration in the same folder, first sing-box, then us: its bbolt file is moved aside whole."""
    port = free_port()
    with tellers("a", "b") as there:
        config = configuration(port, there, {})
        with sing_box(config, port, tmp_path):
            assert told(port) == "a"
        before = (tmp_path / "cache.db").read_bytes()
        with ours(config, port, tmp_path):
            assert told(port) == "a"
        assert (tmp_path / "cache.db.broken").read_bytes() == before


def test_a_change_of_the_cache_file_asks_for_a_restart(tmp_path):
    port = free_port()
    with tellers("a", "b") as there, ours(configuration(port, there, {}), port, tmp_path) as gateway:
        file = gateway.process.log.with_name("config.json")
        file.write_text(file.read_text().replace('"enabled":true', '"enabled":false'))
        gateway.process.send_signal(signal.SIGHUP)
        for _ in range(200):
            if "configuration kept" in gateway.log:
                break
            signal.sigtimedwait([], 0.05)
        assert "experimental.cache_file: it changed: restart for that" in gateway.log
