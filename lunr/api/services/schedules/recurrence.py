"""When a schedule runs: pure functions of the schedule, the volume and the time.

A schedule runs every so often, counted from a time of the day (and for weeks, a
day of the week) in UTC: ``every`` ``6h`` ``at`` ``03:30`` is 03:30, 09:30, 15:30
and 21:30. All periods divide a day or are a week, so it is the same every day.
Each volume has a place of its own within the `spread` after that, which its id
decides: a thousand volumes do not begin in one second, and each begins at the
same time day after day.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from lunr.common import errors

#: What `every` may be. None: never.
PERIODS: dict[str, timedelta | None] = {
    "none": None,
    "15m": timedelta(minutes=15),
    "30m": timedelta(minutes=30),
    **{f"{hours}h": timedelta(hours=hours) for hours in (1, 2, 3, 4, 6, 8, 12)},
    "1d": timedelta(days=1),
    "1w": timedelta(weeks=1),
}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT = re.compile(rf"(?:({'|'.join(_DAYS)}) )?([01][0-9]|2[0-3]):([0-5][0-9])")
#: A Monday, from which all periods are counted.
_EPOCH = datetime(2001, 1, 1)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Recurrence:
    """When it is time.

    Attributes:
        every: a key of PERIODS.
        at: ``HH:MM``, for weeks ``DAY HH:MM``.
        spread: minutes.
    """

    every: str
    at: str
    spread: int

    @classmethod
    def of(cls, every: str, at: str | None = None, spread: int | None = None) -> Recurrence:
        """A recurrence that makes sense; what is None has its default.

        The defaults: midnight (of Sunday), and spread over a sixth of the period, an
        hour at most.

        Raises:
            errors.InvalidField: `at` is no time for such a period, `spread` is longer than it.
        """
        period = PERIODS[every]
        weekly = every == "1w"
        if at is None:
            at = "sun 00:00" if weekly else "00:00"
        found = _AT.fullmatch(at)
        if found is None or bool(found[1]) != weekly:
            form = "DAY HH:MM, such as sun 03:30" if weekly else "HH:MM, such as 03:30"
            raise errors.InvalidField(field="at", reason=f"with every={every} it is {form} (UTC)")
        most = 0 if period is None else period // _MINUTE
        if spread is None:
            spread = min(60, most // 6)
        if spread > most:
            raise errors.InvalidField(
                field="spread", reason=f"with every={every} it is at most {most} (minutes)"
            )
        return cls(every, at, spread)

    def after(self, moment: datetime, volume_id: str) -> datetime | None:
        """The volume's first time after `moment` (naive, UTC); None: never."""
        period = PERIODS[self.every]
        if period is None:
            return None
        first = _EPOCH + self._offset() + self._place(volume_id)
        return first + ((moment - first) // period + 1) * period

    def _offset(self) -> timedelta:
        found = _AT.fullmatch(self.at)
        assert found is not None
        day = _DAYS.index(found[1]) if found[1] else 0
        return timedelta(days=day, hours=int(found[2]), minutes=int(found[3]))

    def _place(self, volume_id: str) -> timedelta:
        """The volume's own place in the spread, to the second."""
        digest = hashlib.blake2b(volume_id.encode(), digest_size=8).digest()
        return timedelta(seconds=int.from_bytes(digest) % max(1, self.spread * 60))
