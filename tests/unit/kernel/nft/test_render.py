"""The base table's text, judged by nft itself."""

from __future__ import annotations

import os

import pytest

from gateway.kernel import mark
from gateway.kernel.nft.library import Library, folder
from gateway.kernel.nft.render import base, quote
from gateway.kernel.plan import Base, PortForward

TEXT = (folder() / "base.nft").read_text()


def test_marks_in_the_file_are_the_ones_of_the_code() -> None:
    assert f"define USERSPACE = {mark.USER:#010x}" in TEXT


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="nft -c needs root")
@pytest.mark.parametrize("firewall", [True, False])
def test_nft_accepts_a_full_plan(firewall: bool) -> None:
    forwards = (PortForward("tcp", 8080, "192.168.8.2", 80), PortForward("udp", 53, "2001:db8::2", 0))
    plan = Base(("lan", "br-1.2"), ("wan",), firewall, "open", forwards, (22, 443), (500,))
    Library().run(base(plan, TEXT), check=True)


@pytest.mark.parametrize("name", ["", "x" * 16, 'a"b', "a/b", "a b", "..", "a\nb"])
def test_bad_interface_names(name: str) -> None:
    with pytest.raises(ValueError, match="interface name"):
        quote(name)
