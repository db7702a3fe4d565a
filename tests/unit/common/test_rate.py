"""The limit of bytes a second, in a time that goes by only when somebody waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common.rate import TokenBucket

RATE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_those_who_share_one_wait_one_after_the_other() -> None:
    bucket = TokenBucket(RATE, clock=Clock())
    assert [bucket.take(500) for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])


def test_zero_is_no_limit() -> None:
    assert TokenBucket(0).take(1 << 50) == 0


@pytest.mark.parametrize("burst", [0.0, 1.0])
def test_a_rest_saves_up_no_more_than_a_burst(burst: float) -> None:
    clock = Clock()
    bucket = TokenBucket(RATE, burst, clock)
    clock.now += 1000
    assert bucket.take(3000) == pytest.approx(3.0 - burst)


def test_what_is_left_of_a_burst_is_told() -> None:
    clock = Clock()
    bucket = TokenBucket(RATE, 1.0, clock)
    clock.now += 0.5
    assert bucket.take(0) == pytest.approx(-0.5)
    assert bucket.take(200) == pytest.approx(-0.3)
    assert bucket.take(400) == pytest.approx(0.1)


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 3)), min_size=1),
    st.sampled_from([0.0, 0.25, 1.0]),
)
def test_it_is_never_faster_and_never_idle(work: list[tuple[int, float]], burst: float) -> None:
    """By a model that fills in steps: a bucket of `burst` seconds, which debts may empty."""
    clock = Clock()
    bucket = TokenBucket(RATE, burst, clock)
    level = 0.0
    for count, pause in work:
        clock.now += pause
        level = min(level + pause * RATE, burst * RATE) - count
        assert bucket.take(count) == pytest.approx(-level / RATE, abs=1e-6)
