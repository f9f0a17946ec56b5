"""The base table's text, judged by nft itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from gateway.kernel import mark
from gateway.kernel.nft.library import Library, folder
from gateway.kernel.nft.render import base, quote
from gateway.kernel.nft.steer_render import ERRORS
from gateway.kernel.plan import Base, PortForward

TEXT, GUARD = ((folder() / name).read_text() for name in ("base.nft", "guard.nft"))


def test_marks_in_the_file_are_the_ones_of_the_code() -> None:
    assert f"define USERSPACE = {mark.USER:#010x}" in TEXT
    assert f"define CLASS = {mark.CLASS:#010x}" in GUARD
    assert f"define DIRECT = {mark.DIRECT:#010x}" in GUARD


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="nft -c needs root")
@pytest.mark.parametrize("fail", ["open", "closed", "hold"])
@pytest.mark.parametrize("firewall", [True, False])
def test_nft_accepts_a_full_plan(firewall: bool, fail: Literal["open", "closed", "hold"]) -> None:
    forwards = (PortForward("tcp", 8080, "192.168.8.2", 80), PortForward("udp", 53, "2001:db8::2", 0))
    plan = Base(("lan", "br-1.2"), ("wan",), firewall, fail, forwards, (22, 443), (500,))
    text = base(plan, TEXT, GUARD)
    Library().run(text, check=True)
    assert ("chain guard" in text) == (fail != "open")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="nft -c needs root")
@pytest.mark.parametrize(
    "file", [*sorted(folder().glob("*.nft")), None], ids=lambda file: file.name if file else "rules"
)
def test_a_host_without_a_list_of_protocols(file: Path | None) -> None:
    """A bare Debian has no /etc/protocols: of their names nft knows by itself only its own keywords."""
    text = file.read_text() if file else f"table inet bare {{ chain rules {{ {ERRORS}; }}; }}"
    bare = "[ ! -e /etc/protocols ] || mount --bind /dev/null /etc/protocols && exec nft -c -f -"
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", bare]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["", "x" * 16, 'a"b', "a/b", "a b", "..", "a\nb"])
def test_bad_interface_names(name: str) -> None:
    with pytest.raises(ValueError, match="interface name"):
        quote(name)
