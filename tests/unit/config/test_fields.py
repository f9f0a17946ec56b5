"""The spellings of scalar fields, against what Go and sing-box accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.fields import Duration, FwMark, Prefix, UDPTimeout, dec_hook, format_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300ms", 0.3), ("1h30m", 5400), ("1.5s", 1.5), ("1d", 86400), ("-1s", -1), ("0", 0), ("10us", 1e-5), (".5m", 30)],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s2", "1 s", "--1s", "1s x"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@given(st.floats(0, 1e7).map(lambda value: round(value, 3)))
def test_durations_round_trip(seconds: float) -> None:
    assert Duration.parse(format_duration(seconds)) == pytest.approx(seconds, rel=1e-4, abs=1e-9)


def test_udp_timeout_takes_numbers() -> None:
    assert dec_hook(UDPTimeout, 90) == 90
    assert dec_hook(UDPTimeout, "5m") == 300
    with pytest.raises(ValueError, match="unit"):
        dec_hook(Duration, 90)


def test_prefixes() -> None:
    assert str(Prefix.parse("192.168.8.1/24").network) == "192.168.8.0/24"
    assert str(Prefix.parse("2001:db8::1")) == "2001:db8::1/128"
    for bad in ("192.0.2.0/33", "192.0.2.0/", "192.0.2.0/-1", "x", "2001:db8::/129"):
        with pytest.raises(ValueError, match="prefix"):
            Prefix.parse(bad)


@pytest.mark.parametrize(("value", "mark"), [(1, 1), ("0x10", 16), ("255", 255), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_marks(value: object, mark: int) -> None:
    assert dec_hook(FwMark, value) == mark


@pytest.mark.parametrize("value", [-1, 1 << 32, "x", True, 1.5])
def test_bad_marks(value: object) -> None:
    with pytest.raises(ValueError, match="mark"):
        dec_hook(FwMark, value)
