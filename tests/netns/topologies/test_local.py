"""A plain machine: what starts on it is steered, and it forwards nothing."""

from __future__ import annotations

import pytest

from .conftest import PHONE, Place

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq")]


@pytest.mark.slow
def test_local(place: Place) -> None:
    found = place.init("phone", "--topology", "local")
    assert found["firewall"] is False
    assert "lans" not in found
    before = place.host("phone").run(["sysctl", "-a", "-r", "^net.*forward"]).out
    place.start()
    place.direct("phone", PHONE)
    place.proxied("phone")
    assert place.host("phone").run(["sysctl", "-a", "-r", "^net.*forward"]).out == before
    place.kill()
    place.direct("phone", PHONE)
    place.start()
    place.proxied("phone")
    place.end()
    place.direct("phone", PHONE)
