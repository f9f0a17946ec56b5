"""The configuration of docs/protocol/tun.md does what the page says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.config.text import parse
from gateway.lab.process import User

from .rig import CLIENT, GUEST, OWN, ROOT, SITES, Ours, Rig

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("tun")]


def documented() -> dict[str, Any]:
    page = (ROOT / "docs/protocol/tun.md").read_text()
    found = re.search(r"```jsonc\n(.*?)```", page, re.S)
    assert found is not None
    value: dict[str, Any] = parse(found[1], "tun.md")
    return value


@pytest.mark.parametrize("way", ["auto_route", "auto_redirect"])
def test_the_configuration_of_the_page(rig: Rig, way: str) -> None:
    value = documented()
    value["inbounds"][0]["auto_redirect"] = way == "auto_redirect"
    ours = Ours(rig, value)
    try:
        ours.start()
        for version, site, other in ((4, SITES[0], SITES[1]), (6, SITES[4], SITES[5])):
            for kind in ("tcp", "udp"):
                assert rig.ask(rig.client, kind, site) == OWN[version], "carried"
                assert rig.ask(rig.client, kind, other) == CLIENT[version], "of the set"
                assert rig.ask(rig.guest, kind, site) == GUEST[version], "of the excluded interface"
            before = len(ours.told())
            assert rig.ask(rig.gateway, "tcp", site, user=User(4711, 4711)) == OWN[version]
            assert "tun-in" not in ours.told()[before:], "of an excluded user"
            assert rig.ask(rig.gateway, "tcp", site) == OWN[version]
            assert "tun-in" in ours.told()[before:]
        words = ["dig", f"@{SITES[0]}", "+short", "+tries=1", "+time=5", "router.example", "A"]
        assert rig.client.run(words).out.split() == ["192.0.2.7"]
    finally:
        ours.close()
