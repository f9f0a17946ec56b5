"""``fakeip`` beside sing-box: the same configuration, the same clients that ask for names and go where they lead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time

import dns.exception
import dns.message
import dns.query
import dns.rdatatype
import pytest

from gateway.cli import main
from tests.interop.harness import DEADLINE, LOOPBACK, association, check_stream, echo, encode, free_port, socks_connect
from tests.interop.running import both, documented, ours
from tests.interop.teller import Teller, sent, tellers, unwrapped

NAMES = ("one.example", "two.example", "direct.example", "other.example")


def configuration(port, names, there, **server):
    """Of ``docs/dns.md``: what is below ``example`` is fake. What the rules say of an address is not to hold."""
    config = documented("dns.md", "Fake addresses")
    config["dns"]["servers"][0] = {
        "type": "hosts", "tag": "real", "predefined": {"direct.example": LOOPBACK, "real.test": "192.0.2.1"},
    }  # fmt: skip
    config["dns"]["servers"][1] |= server
    config["inbounds"] = [
        {"type": "direct", "tag": "names", "listen": LOOPBACK, "listen_port": names},
        {"type": "socks", "tag": "in", "listen": LOOPBACK, "listen_port": port},
    ]
    config["outbounds"] = [
        *({"type": "socks", "tag": tag, "server": one.host, "server_port": one.port} for tag, one in there.items()),
        {"type": "direct", "tag": "direct"},
    ]
    config["route"] = {
        "rules": [
            {"inbound": "names", "action": "hijack-dns"},
            {"domain": "one.example", "outbound": "named"},
            {"domain": "direct.example", "outbound": "direct"},
            {"ip_cidr": ["198.18.0.0/15", "fc00::/18"], "outbound": "addressed"},
        ],
        "final": "plain",
        "default_domain_resolver": "real",
    }
    return config


def asked(port, name, kind="A"):
    """(address, TTL) that is answered; nothing for an empty answer or none."""
    query = dns.message.make_query(name, kind)
    for _ in range(10):  # the port may come a moment after the one that was waited for
        with contextlib.suppress(dns.exception.Timeout):
            answer = dns.query.udp(query, LOOPBACK, 2, port)
            return [(str(one), some.ttl) for some in answer.answer for one in some]
    return []


def went(port, host, target=80):
    """``tag host port`` of the Teller that a flow ends at; "" where it is refused."""
    try:
        with socks_connect(port, host, target) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(b"?")
            return sock.recv(200).decode()
    except (AssertionError, OSError):
        return ""


@pytest.mark.peer("sing-box")
def test_same_as_sing_box(tmp_path):
    seen = {}
    for name, run, folder in both(tmp_path):
        port, names = free_port(), free_port()
        with tellers("plain", "named", "addressed") as there, echo() as far:
            config = configuration(port, names, there)
            with run(config, port, folder):
                found = seen[name] = {}
                for kind in ("A", "AAAA"):
                    for one in (*NAMES, "real.test", NAMES[0]):
                        found[kind, one] = asked(names, one, kind)
                fakes = {(one, kind): found[kind, one][0][0] for one in NAMES for kind in ("A", "AAAA")}
                for (one, kind), address in fakes.items():
                    if one == "direct.example":
                        check_stream(socks_connect(port, address, far), half_close=True)
                        found["udp", one, kind] = sent(port, address, far, b"there and back")
                        found["udp", one, kind] = found["udp", one, kind][0][0], found["udp", one, kind][1]
                    else:
                        found["tcp", one, kind] = went(port, address)
                        found["udp", one, kind] = sent(port, address, 7)
                found["real"] = went(port, "192.0.2.1")
                found["unknown"] = went(port, "198.18.77.77"), went(port, "fc00::7777")
    assert seen["ours"] == seen["theirs"]
    assert seen["ours"]["A", "one.example"] == [("198.18.0.3", 600)]
    assert seen["ours"]["AAAA", "two.example"] == [("fc00::4", 600)]
    assert seen["ours"]["tcp", "one.example", "A"] == "named one.example 80"
    assert seen["ours"]["tcp", "two.example", "AAAA"] == "plain two.example 80"
    assert seen["ours"]["udp", "direct.example", "A"] == ("198.18.0.5", "there and back")
    assert seen["ours"]["udp", "two.example", "A"] == (("198.18.0.4", 7), "plain two.example 7")
    assert seen["ours"]["unknown"] == ("", "")


@pytest.mark.peer("sing-box")
def test_a_range_comes_round(tmp_path):
    """The oldest name goes, and a flow to its address goes where the newer one goes."""
    seen = {}
    for name, run, folder in both(tmp_path):
        port, names = free_port(), free_port()
        with tellers("plain", "named", "addressed") as there:
            config = configuration(port, names, there, inet4_range="198.18.0.0/29", inet6_range="fc00::/125")
            with run(config, port, folder):
                found = []
                for letter in "abcdefgab":
                    found.append(asked(names, f"{letter}.example"))
                    # sing-box writes each name by itself: of two for one address either may be the last.
                    time.sleep(0.2)
                seen[name] = found, [went(port, f"198.18.0.{number}") for number in range(8)]
    assert seen["ours"][1] == ["", "", *(f"plain {letter}.example 80" for letter in "fgabde")]
    assert seen["ours"] == seen["theirs"]
    assert seen["ours"][0][0] == seen["ours"][0][6] == [("198.18.0.3", 600)]


@pytest.mark.slow
def test_what_a_client_was_told_holds_after_sigkill(tmp_path):
    port, names = free_port(), free_port()
    with tellers("plain", "named", "addressed") as there:
        config = configuration(port, names, there)
        with ours(config, port, tmp_path) as gateway:
            first = [asked(names, one) for one in NAMES]
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
        with ours(config, port, tmp_path) as gateway:
            assert went(port, first[0][0][0]) == "named one.example 80"
            assert asked(names, "new.example") == [("198.18.0.7", 600)]
            assert [asked(names, one) for one in NAMES] == first
            told = gateway.cli("explain", first[0][0][0])
            assert "198.18.0.3 is a fake address" in told
            assert "tcp to one.example port 443" in told
            assert "decides: named" in told
        config["experimental"]["cache_file"]["store_fakeip"] = False
        with ours(config, port, tmp_path):
            assert went(port, first[0][0][0]) == ""


def test_a_reload_keeps_them_and_other_types_are_empty(tmp_path):
    port, names = free_port(), free_port()
    with tellers("plain", "named", "addressed") as there:
        config = configuration(port, names, there)
        del config["experimental"], config["dns"]["rules"][0]["query_type"]
        with ours(config, port, tmp_path) as gateway:
            ((fake, _),) = asked(names, "one.example")
            for kind in ("HTTPS", "TXT"):
                answer = dns.query.udp(dns.message.make_query("one.example", kind), LOOPBACK, DEADLINE, names)
                assert (answer.rcode(), answer.answer) == (0, [])
            config["route"]["rules"][1]["outbound"] = "plain"
            gateway.process.log.with_name("config.json").write_text(json.dumps(config))
            gateway.ask("reload")
            assert went(port, fake) == "plain one.example 80"
            assert asked(names, "two.example") == [("198.18.0.4", 600)]


@pytest.mark.peer("sing-box")
def test_the_older_spelling(tmp_path, capsys):
    """Taken by both, to the same end; ours says what to write."""
    seen = {}
    for name, run, folder in both(tmp_path):
        port, names = free_port(), free_port()
        with tellers("plain", "named", "addressed") as there:
            config = configuration(port, names, there)
            ranges = {key: config["dns"]["servers"][1].pop(key) for key in ("inet4_range", "inet6_range")}
            config["dns"] |= {"fakeip": {"enabled": True, **ranges}}
            config["dns"]["servers"][1] = {"tag": "fake", "address": "fakeip"}
            with run(config, port, folder):
                seen[name] = asked(names, "one.example"), went(port, "198.18.0.3")
    assert seen["ours"] == seen["theirs"] == ([("198.18.0.3", 600)], "named one.example 80")
    file = tmp_path / "old.json"
    file.write_text(json.dumps(config))
    assert main(["check", "-c", str(file)]) == 0
    said = capsys.readouterr().err
    assert 'dns.servers[1].address: deprecated; write "type": "fakeip"' in said
    assert "dns.fakeip: deprecated" in said


class Resolving(Teller):
    """Answers datagrams under the address that a name has, as some proxies do."""

    def _datagrams(self):
        with contextlib.suppress(OSError):
            while True:
                data, source = self.udp.recvfrom(65536)
                if not data:
                    return  # shut down
                target, _ = unwrapped(data)
                self.udp.sendto(b"\0\0\0" + encode("203.0.113.9", target[1]) + self._word(target), source)


def test_a_proxy_that_answers_with_the_real_address(tmp_path):
    """The client, which knows no other, hears it from the fake one; with two names at one port nobody can tell."""
    port, names = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        there = {"plain": stack.enter_context(contextlib.closing(Resolving("plain")))}
        there |= stack.enter_context(tellers("named", "addressed"))
        stack.enter_context(ours(configuration(port, names, there), port, tmp_path))
        first, second = asked(names, "two.example")[0][0], asked(names, "other.example")[0][0]
        assert sent(port, first, 7) == ((first, 7), "plain two.example 7")
        assert sent(port, "192.0.2.1", 7)[0] == ("203.0.113.9", 7)
        relay = stack.enter_context(association(port))
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(DEADLINE)
        seen = []
        for host, number in ((first, 7), (second, 8), (second, 7)):
            sock.sendto(b"\0\0\0" + encode(host, number) + b"?", relay)
            seen.append(unwrapped(sock.recv(2048))[0])
        assert seen == [(first, 7), (second, 8), ("203.0.113.9", 7)]
