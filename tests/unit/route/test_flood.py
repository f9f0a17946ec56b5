"""Refusals that turn silent: against a plain list of times."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.route.flood import ANSWERED, WINDOW, Flood


def test_the_fifty_first_within_the_window_is_dropped_until_the_oldest_is_out() -> None:
    flood = Flood()
    assert [flood.drops(3, 0.5 * number) for number in range(60)] == [False] * 50 + [True] * 10
    assert not flood.drops(4, 29.5)  # each rule for itself
    # 29.5 was the last; what was dropped counts as well.
    assert flood.drops(3, 29.6)
    assert not flood.drops(3, 29.6 + WINDOW)


@given(st.lists(st.integers(0, 4), max_size=200))
def test_as_a_list_of_all_times(gaps: list[int]) -> None:
    flood, times, now = Flood(), [], 0
    for gap in gaps:
        now += gap
        times.append(now)
        recent = [time for time in times if now - time <= WINDOW]
        assert flood.drops(0, now) == (len(recent) > ANSWERED)
