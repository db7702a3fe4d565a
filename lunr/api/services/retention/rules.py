"""Which backups are kept: the rules, as pure functions.

The rules are those of ``restic forget`` and Proxmox Backup Server. Each names a
period and a count: of each of the last `count` periods that have a backup, the
newest one is kept. A backup that any rule keeps is kept; rules know nothing of
each other. Periods are in UTC; weeks are those of ISO 8601 and begin on Monday.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

#: rule -> the period that a moment is in. `keep_last` has none: each backup counts.
PERIODS: Mapping[str, Callable[[datetime], object] | None] = {
    "keep_last": None,
    "keep_hourly": lambda at: (at.date(), at.hour),
    "keep_daily": lambda at: at.date(),
    "keep_weekly": lambda at: at.isocalendar()[:2],
    "keep_monthly": lambda at: (at.year, at.month),
    "keep_yearly": lambda at: at.year,
}

#: rule -> how many periods. Without any, all backups are kept.
Rules = Mapping[str, int]


def kept(backups: Iterable[tuple[str, datetime]], rules: Rules) -> dict[str, list[str]]:
    """The backups that the rules keep, and which rule keeps each.

    Args:
        backups: id and moment of each, in any order.
        rules: counts of 0 are no rules.

    Returns:
        id -> ``["daily 1", "weekly 1"]``: it is the newest of the first day and week,
        counted backwards. The newest backup is always in it, if there is any rule.

    >>> day = [datetime(2026, 11, 23, hour) for hour in (1, 2, 3)]
    >>> kept([("a", day[0]), ("b", day[1]), ("c", day[2])], {"keep_daily": 7, "keep_hourly": 2})
    {'c': ['hourly 1', 'daily 1'], 'b': ['hourly 2']}
    """
    newest_first = sorted(backups, key=lambda backup: (backup[1], backup[0]), reverse=True)
    reasons: dict[str, list[str]] = {}
    for rule, period in PERIODS.items():
        seen: set[object] = set()
        for id, moment in newest_first:
            if len(seen) >= rules.get(rule, 0):
                break
            found = id if period is None else period(moment)
            if found not in seen:
                seen.add(found)
                reason = f"{rule.removeprefix('keep_')} {len(seen)}"
                reasons.setdefault(id, []).append(reason)
    return reasons
