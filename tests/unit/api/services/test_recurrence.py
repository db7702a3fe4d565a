"""When a schedule runs."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lunr.api.services.schedules.recurrence import PERIODS, Recurrence
from lunr.common import errors

MOMENTS = st.datetimes(datetime(1999, 1, 1), datetime(2100, 1, 1))
CLOCK = st.times().map(lambda time: time.strftime("%H:%M"))
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY = st.sampled_from([every for every in PERIODS if every != "none"])
VOLUMES = st.text(min_size=1, max_size=64)


@st.composite
def timings(draw: st.DrawFn) -> Recurrence:
    every = draw(EVERY)
    period = PERIODS[every]
    assert period is not None
    at = draw(CLOCK)
    if every == "1w":
        at = f"{draw(st.sampled_from(DAYS))} {at}"
    return Recurrence.of(every, at, draw(st.integers(0, period // timedelta(minutes=1))))


@given(timings(), VOLUMES, MOMENTS)
def test_times_are_a_period_apart_and_nothing_lies_between(
    timing: Recurrence, volume_id: str, moment: datetime
) -> None:
    period = PERIODS[timing.every]
    first = timing.after(moment, volume_id)
    assert first is not None and period is not None
    assert moment < first <= moment + period
    assert timing.after(first, volume_id) == first + period
    assert timing.after(first - timedelta(seconds=1), volume_id) == first


@given(timings(), VOLUMES, MOMENTS)
def test_a_volume_begins_in_the_spread_after_the_time_that_was_asked_for(
    timing: Recurrence, volume_id: str, moment: datetime
) -> None:
    first = timing.after(moment, volume_id)
    assert first is not None
    clock = timing.at.split()[-1]
    period = PERIODS[timing.every]
    assert period is not None
    # Count back to the time of day (and day of the week) that `at` names.
    asked = datetime.combine(first.date(), datetime.strptime(clock, "%H:%M").time())
    if timing.every == "1w":
        asked += timedelta(days=DAYS.index(timing.at[:3]) - first.weekday())
    assert (first - asked) % period < max(timedelta(seconds=1), timedelta(minutes=timing.spread))


def test_an_example() -> None:
    timing = Recurrence.of("6h", "03:30", 0)
    moment = datetime(2026, 11, 23, 10)
    found = []
    for _ in range(4):
        after = timing.after(moment, "v1")
        assert after is not None
        found.append(after.strftime("%d. %H:%M"))
        moment = after
    assert found == ["23. 15:30", "23. 21:30", "24. 03:30", "24. 09:30"]
    weekly = Recurrence.of("1w", "sun 03:30", 0).after(moment, "v1")
    assert weekly == datetime(2026, 11, 29, 3, 30)
    assert weekly.strftime("%A") == "Sunday"


def test_a_thousand_volumes_are_spread_and_stay_where_they_are() -> None:
    timing = Recurrence.of("1d", "03:30", 60)
    day, next_day = datetime(2026, 11, 23), datetime(2026, 11, 24)
    begun = {}
    for number in range(1000):
        first = timing.after(day, f"v{number}")
        assert first is not None
        assert timing.after(next_day, f"v{number}") == first + timedelta(days=1)
        begun[f"v{number}"] = first
    minutes = [sum(t.minute == m for t in begun.values()) for m in range(60)]
    assert min(minutes) >= 3
    assert max(minutes) <= 40  # 17 on average


def test_never_is_never() -> None:
    assert Recurrence.of("none").after(datetime(2026, 1, 1), "v1") is None


@pytest.mark.parametrize(
    ("every", "at", "spread", "field"),
    [
        ("1d", "24:00", None, "at"),
        ("1d", "3:30", None, "at"),
        ("1d", "sun 03:30", None, "at"),
        ("1w", "03:30", None, "at"),
        ("1w", "Sunday 03:30", None, "at"),
        ("1d", "03:30\n", None, "at"),
        ("1h", None, 61, "spread"),
        ("none", None, 1, "spread"),
    ],
)
def test_what_makes_no_sense_is_refused(
    every: str, at: str | None, spread: int | None, field: str
) -> None:
    with pytest.raises(errors.InvalidField) as caught:
        Recurrence.of(every, at, spread)
    assert caught.value.fields["field"] == field


@given(st.sampled_from(sorted(PERIODS)))
def test_the_defaults_make_sense(every: str) -> None:
    timing = Recurrence.of(every)
    assert Recurrence.of(every, timing.at, timing.spread) == timing
    assume(every != "none")
    period = PERIODS[every]
    assert period is not None
    assert timedelta(0) < timedelta(minutes=timing.spread) * 6 <= period
