"""Moments: naive datetimes in UTC inside lunr, ISO 8601 with a ``Z`` outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

#: By how much the clocks of a service's machines may differ.
SKEW = timedelta(minutes=5)


def now() -> datetime:
    """The current time in UTC, without a zone (what the database columns hold)."""
    return datetime.now(UTC).replace(tzinfo=None)


def iso(moment: datetime | None) -> str | None:
    """`moment` for a JSON answer; None stays None.

    >>> iso(datetime(2026, 11, 23, 12, 0))
    '2026-11-23T12:00:00.000000Z'
    """
    return None if moment is None else moment.isoformat(timespec="microseconds") + "Z"
