"""hosts(5) files, resolv.conf(5), and the options of ``hosts``."""

import asyncio
import os
from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.decode import decode
from gateway.core.errors import ConfigError
from gateway.dns import message
from gateway.dns.server import hosts, local


def test_lines():
    found = hosts.parse("127.0.0.1\tlocalhost a\n::1 LocalHost.  # b\n#192.0.2.1 c\nfe80::1%eth0 d\n\nx y\n192.0.2.2\n")
    assert {name: [str(ip) for ip in ips] for name, ips in found.items()} == {
        "localhost": ["127.0.0.1", "::1"], "a": ["127.0.0.1"], "d": ["fe80::1"],
    }  # fmt: skip


@given(st.text(max_size=200))
def test_any_text(text):
    hosts.parse(text)


def test_a_changed_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "CHECK", 0.0)
    file = tmp_path / "hosts"
    made = hosts.Server("h", hosts.Options(path=str(file)), None)

    def ask():
        answer = asyncio.run(made.exchange(message.query("a.test", 1)))
        return message.rcode(answer), [str(ip) for ip, _ in message.addresses(answer)]

    assert ask() == (message.NXDOMAIN, [])
    file.write_text("192.0.2.1 a.test\n")
    assert ask() == (0, ["192.0.2.1"])
    file.write_text("192.0.2.2 a.test\n")
    os.utime(file, ns=(1, 1))
    assert ask() == (0, ["192.0.2.2"])
    file.unlink()
    assert ask() == (message.NXDOMAIN, [])


def test_a_wrong_address_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError):
        decode(hosts.Options, {"predefined": {"a.test": "nonsense"}}, "dns.servers[0]", "HostsDNSServerOptions")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"predefined": {"a.test": 7}}, hosts.Options)


def test_resolv_conf(tmp_path):
    file = tmp_path / "resolv.conf"
    assert local.read_servers(file) == (ip_address("127.0.0.1"),)
    file.write_text(
        "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\nnameserver\n" + "nameserver ::1\n" * 9
    )
    assert [str(ip) for ip in local.read_servers(file)] == ["192.0.2.1", "fe80::1", "::1"]
