"""Which backups are kept, against an oracle that looks at each period by itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from lunr.api.services.retention.rules import PERIODS, kept

MOMENTS = st.datetimes(datetime(2024, 2, 1), datetime(2026, 3, 1))
BACKUPS = st.lists(MOMENTS, max_size=40).map(
    lambda moments: [(f"b{number}", moment) for number, moment in enumerate(moments)]
)
RULES = st.dictionaries(st.sampled_from(sorted(PERIODS)), st.integers(0, 6))
#: Periods, told another way than the code tells them.
FORMATS = {
    "keep_hourly": "%Y-%m-%d %H",
    "keep_daily": "%Y-%m-%d",
    "keep_weekly": "%G-W%V",
    "keep_monthly": "%Y-%m",
    "keep_yearly": "%Y",
}


def age(backup: tuple[str, datetime]) -> tuple[datetime, str]:
    return backup[1], backup[0]


def oracle(backups: list[tuple[str, datetime]], rules: dict[str, int]) -> set[str]:
    """The ids that are kept: group by period, and take the newest of each of the last groups."""
    found: set[str] = set()
    for rule, count in rules.items():
        groups: dict[str, list[tuple[str, datetime]]] = {}
        for backup in backups:
            # A string of the moment and id sorts as they do: each is a period of its own.
            form = FORMATS.get(rule)
            period = (
                f"{backup[1].isoformat()}{backup[0]}" if form is None else f"{backup[1]:{form}}"
            )
            groups.setdefault(period, []).append(backup)
        newest = sorted((max(group, key=age) for group in groups.values()), key=age)
        found |= {id for id, _ in newest[len(newest) - min(count, len(newest)) :]}
    return found


@given(BACKUPS, RULES)
def test_what_is_kept_is_what_the_oracle_says(
    backups: list[tuple[str, datetime]], rules: dict[str, int]
) -> None:
    reasons = kept(backups, rules)
    assert set(reasons) == oracle(backups, rules)
    for rule, count in rules.items():
        word = rule.removeprefix("keep_")
        numbers = [
            int(reason.split()[1])
            for told in reasons.values()
            for reason in told
            if reason.split()[0] == word
        ]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert len(numbers) <= count


@given(BACKUPS, RULES)
def test_pruning_again_prunes_nothing(
    backups: list[tuple[str, datetime]], rules: dict[str, int]
) -> None:
    once = kept(backups, rules)
    left = [backup for backup in backups if backup[0] in once]
    assert kept(left, rules) == once


@given(BACKUPS.filter(bool), RULES.filter(lambda rules: any(rules.values())))
def test_the_newest_is_always_kept(
    backups: list[tuple[str, datetime]], rules: dict[str, int]
) -> None:
    assert max(backups, key=age)[0] in kept(backups, rules)


@given(BACKUPS.filter(bool), RULES, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_a_new_backup_costs_a_rule_at_most_its_oldest(
    backups: list[tuple[str, datetime]], rules: dict[str, int], later: timedelta
) -> None:
    """It takes the place of the newest, if it is of the same period, or else of the oldest."""
    newest = max(backups, key=age)
    new = ("new", newest[1] + later)
    for rule, count in rules.items():
        before = set(kept(backups, {rule: count}))
        after = set(kept([*backups, new], {rule: count}))
        lost = before - after
        assert len(lost) <= 1
        by_age = sorted((backup for backup in backups if backup[0] in before), key=age)
        assert lost <= {by_age[0][0], newest[0]} if by_age else not lost
        period = PERIODS[rule]
        if count and period is not None and period(new[1]) == period(newest[1]) and later:
            assert lost == {newest[0]}


@given(BACKUPS, RULES, st.sampled_from(sorted(PERIODS)), st.integers(1, 6))
def test_one_more_rule_or_a_larger_one_keeps_no_less(
    backups: list[tuple[str, datetime]], rules: dict[str, int], rule: str, more: int
) -> None:
    larger = {**rules, rule: rules.get(rule, 0) + more}
    assert set(kept(backups, rules)) <= set(kept(backups, larger))


def test_a_year_of_nights_pruned_each_night_leaves_what_one_prune_would() -> None:
    """Months and weeks are not lost on the way because their days were pruned."""
    rules = {
        "keep_last": 2,
        "keep_daily": 7,
        "keep_weekly": 5,
        "keep_monthly": 12,
        "keep_yearly": 2,
    }
    nights = [
        (f"{number:03}", datetime(2025, 3, 1, 3, 30) + timedelta(days=number))
        for number in range(400)
    ]
    left: list[tuple[str, datetime]] = []
    for night in nights:
        left.append(night)
        keeps = kept(left, rules)
        left = [backup for backup in left if backup[0] in keeps]
    assert {id for id, _ in left} == set(kept(nights, rules))
    months = [moment.strftime("%Y-%m") for _, moment in left]
    assert len(set(months)) == 12
