"""``store_rdrc`` beside sing-box: a server whose answer an address rule did not take is not asked again."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import dns.message
import dns.rrset
import pytest

from tests.interop.harness import LOOPBACK, free_port
from tests.interop.running import both, ours, sing_box, until
from tests.interop.test_fakeip import asked


@contextlib.contextmanager
def server(address):
    """(port, names that were asked for) of a name server for which every name has ``address``."""
    port, seen = free_port(), []
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK, port))

    def work():
        with contextlib.suppress(OSError):
            while True:
                data, client = sock.recvfrom(4096)
                if not data:
                    return
                query = dns.message.from_wire(data)
                answer = dns.message.make_response(query)
                name = query.question[0].name
                seen.append(str(name).rstrip("."))
                answer.answer.append(dns.rrset.from_text(name, 1, "IN", "A", address))
                sock.sendto(answer.to_wire(), client)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield port, seen
    finally:
        sock.sendto(b"", (LOOPBACK, port))
        thread.join(5)
        sock.close()


def configuration(port, names, near, far, **cache):
    servers = {"near": near, "far": far}
    return {
        "dns": {
            "servers": [
                {"type": "udp", "tag": tag, "server": LOOPBACK, "server_port": one} for tag, one in servers.items()
            ],
            "rules": [{"ip_cidr": "192.0.2.0/24", "server": "near"}],
            "final": "far",
            "independent_cache": True,
        },
        "inbounds": [
            {"type": "direct", "tag": "names", "listen": LOOPBACK, "listen_port": names},
            {"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": port},
        ],
        "outbounds": [{"type": "direct", "tag": "direct"}],
        "route": {"rules": [{"inbound": "names", "action": "hijack-dns"}], "default_domain_resolver": "far"},
        "experimental": {"cache_file": {"enabled": True, **cache}},
    }


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_same_as_sing_box(tmp_path):
    """Told once, and so it is after a restart; without ``store_rdrc`` each time, and where answers are not kept."""
    counts = {}
    for name, run in (("theirs", sing_box), ("ours", ours)):
        for stored in (True, False, "uncached"):
            folder = tmp_path / f"{name}-{stored}"
            folder.mkdir()
            with server("198.51.100.1") as (near, heard), server("203.0.113.1") as (far, others):
                port, names = free_port(), free_port()
                config = configuration(port, names, near, far, store_rdrc=bool(stored))
                config["dns"]["disable_cache"] = stored == "uncached"
                for _ in range(2):
                    with run(config, port, folder):
                        until(lambda names=names: asked(names, "ready.example"))
                        for _ in range(2):
                            found = [one for one, _ in asked(names, "a.example")]
                            assert found == ["203.0.113.1"], (name, stored)
                            time.sleep(1.5)  # answers live a second
                counts[name, stored] = heard.count("a.example"), others.count("a.example")
    assert counts["ours", True] == counts["theirs", True] == (1, 4)
    for stored in (False, "uncached"):
        assert counts["ours", stored] == counts["theirs", stored] == (4, 4)


@pytest.mark.slow
@pytest.mark.peer("sing-box")
def test_it_counts_for_so_long(tmp_path):
    counts = {}
    for name, run, folder in both(tmp_path):
        with server("198.51.100.1") as (near, heard), server("203.0.113.1") as (far, _):
            port, names = free_port(), free_port()
            cache = {"store_rdrc": True, "rdrc_timeout": "1s"}
            with run(configuration(port, names, near, far, **cache), port, folder):
                until(lambda names=names: asked(names, "ready.example"))
                for _ in range(3):
                    asked(names, "a.example")
                    time.sleep(2.5)
            counts[name] = heard.count("a.example")
    assert counts == {"ours": 3, "theirs": 3}
