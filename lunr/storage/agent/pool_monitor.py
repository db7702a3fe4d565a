"""Looks after the pool, and remembers how it was: nobody else need wait for a disk that hangs.

What fills up is enlarged by one thread (`PoolWatch.look`), what may go is removed by another
(`PoolWatch.tidy`): a removal can take minutes.
"""

from __future__ import annotations

import dataclasses
import time

from lunr.storage.baselines import Baselines
from lunr.storage.pools.base import Capacity, Pool, Purpose

#: Seconds after which a look that has not ended is trouble.
_OVERDUE = 30.0


class PoolMonitor:
    """What `pool` was like when it was looked at last; any thread may ask."""

    def __init__(self, pool: Pool, baselines: Baselines) -> None:
        self._pool = pool
        self._baselines = baselines
        self._capacity = Capacity(0, 0, full="the pool was not looked at yet")
        self._lost: frozenset[str] = frozenset()
        self._trouble = ""
        self._began: float | None = None

    def look(self) -> bool:
        """Look once; returns whether the API should know soon what there is to see.

        Raises:
            errors.LunrError: the pool is in trouble; until the next look that is why it is full.
        """
        before = self.capacity().full, self._lost
        self._began = time.monotonic()
        try:
            self._pool.watch()
            self._capacity = self._pool.capacity()
            self._lost = frozenset(
                snap.id for snap in self._pool.lost_snapshots() if snap.purpose is Purpose.USER
            )
            self._trouble = ""
        except Exception as error:
            self._trouble = str(error) or repr(error)
            raise
        finally:
            self._began = None
        return before != (self._capacity.full, self._lost)

    def tidy(self) -> None:
        """Give up baselines that are old, or in the way.

        Raises:
            errors.LunrError: the pool does not tell what is there.
        """
        self._baselines.look(self._capacity.tight)

    def capacity(self) -> Capacity:
        """The room there was; a pool that is in trouble, or does not answer, is full."""
        began, trouble = self._began, self._trouble
        if began is not None and (waited := time.monotonic() - began) > _OVERDUE:
            trouble = f"the pool has not answered for {waited:.0f} seconds"
        if not trouble:
            return self._capacity
        return dataclasses.replace(self._capacity, full=trouble)

    def lost_snapshots(self) -> frozenset[str]:
        """The ids of the users' snapshots whose bytes are gone."""
        return self._lost
