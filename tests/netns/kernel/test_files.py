"""The rulesets in ``nft/`` are the ones that are loaded: what an empty configuration makes equals the files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.kernel.nft import base
from gateway.kernel.nft.library import Library, folder
from gateway.kernel.nft.writer import Writer
from gateway.kernel.plan import Base, Capture, Origin, Profile, SourceClass, Steering, Verdict

pytestmark = pytest.mark.root
FILES = ("base.nft", "steer.nft", "guard.nft", "tun.nft")


def listed(net) -> list[dict[str, Any]]:
    """All tables, without what differs between two loads: handles, the place in a chain, counted packets, the owner."""
    found = json.loads(net.nft("-j", "list", "ruleset"))["nftables"]
    for entry in found:
        entry.get("table", {}).pop("flags", None)
    return sorted((clean(entry) for entry in found if "metainfo" not in entry), key=json.dumps)


def clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items() if key not in ("handle", "packets", "bytes")}
    return [clean(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def empty(net):
    """No table of ours, before and after."""
    yield
    for table in ("gateway", "gateway_base"):
        net.nft("-f", "-", stdin=f"add table inet {table}\ndelete table inet {table}\n".encode())
    assert listed(net) == []


def files(net, *names: str) -> list[dict[str, Any]]:
    """What the kernel lists after ``nft -f`` of the files, without ``flags owner``, which would die with nft."""
    assert listed(net) == []
    for name in names:
        net.nft("-f", "-", stdin=(folder() / name).read_text().replace("flags owner", "").encode())
    found = listed(net)
    for table in {entry["table"]["name"] for entry in found if "table" in entry}:
        net.nft("delete", "table", "inet", table)
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_valid_alone(net, empty, name):
    net.nft("-c", "-f", str(folder() / name))
    assert listed(net) == []


@pytest.mark.parametrize("fail", ["open", "closed", "hold"])
def test_the_base_table_of_an_empty_configuration(net, empty, fail):
    wanted = files(net, "base.nft", *(() if fail == "open" else ("guard.nft",)))
    net.gateway.call(lambda: base.apply(Library(), Base((), (), fail=fail)))
    assert listed(net) == wanted
    # A second load replaces it whole.
    net.gateway.call(lambda: base.apply(Library(), Base((), (), fail=fail)))
    assert listed(net) == wanted


def test_the_owned_table_of_an_empty_configuration(net, empty):
    """But for the rules that the code writes into the chains which the file leaves empty."""
    wanted = files(net, "steer.nft")
    # Without the owner: nft 1.0.6 prints tables with a flag as JSON that may break off.
    writer = net.gateway.call(lambda: Writer(False))
    try:
        nothing = Profile((), (), Verdict.DIRECT, Verdict.DIRECT, False)
        plan = Steering((nothing,), (SourceClass(()),), (Origin((), (), 0),), (), 0)
        net.gateway.call(lambda: writer.apply(plan, Capture((), 7893)))
        found = listed(net)
    finally:
        writer.close()
    made = {"forwarded", "within", "local", "deliver", "g1_forwarded", "g1_local", "g1_class_0", "g1_profile_0"}

    def of_code(entry: dict[str, Any]) -> bool:
        return entry.get("rule", {}).get("chain") in made or entry.get("chain", {}).get("name", "").startswith("g1_")

    assert [entry for entry in found if not of_code(entry)] == wanted
    assert {entry["rule"]["chain"] for entry in found if "rule" in entry and of_code(entry)} == made - {"g1_class_0"}
