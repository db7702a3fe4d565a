"""A store of which no more than so many bytes a second are asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from lunr.backup.format.names import Buffer, Kind
from lunr.backup.stores.base import AT_ONCE, Slot, Store
from lunr.common.errors import Cancelled

#: Seconds of which what was not used may be made up for: a request that takes a while
#: must not make the next ones late, too.
_SLACK = 1.0

#: What is paced. Sessions and roots are small, and may not be late: others take a
#: writer that gives no sign of life for dead.
_PACED = frozenset({Kind.CHUNK, Kind.PATCH, Kind.SEGMENT})


class Pace:
    """So many bytes a second, for all threads together."""

    def __init__(
        self,
        rate: int,
        cancel: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Begin now.

        Args:
            rate: bytes a second, more than 0.
            cancel: set to end all waiting with Cancelled.
            clock: seconds.
            wait: waits for so many of them; whether `cancel` was set.
        """
        self._rate = rate
        self._clock = clock
        self._wait = wait or (cancel or threading.Event()).wait
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Return when `count` bytes more may have been moved.

        Raises:
            Cancelled: the job was cancelled meanwhile.
        """
        with self._lock:
            begin = max(self._free_at, self._clock() - _SLACK)
            self._free_at = end = begin + count / self._rate
        while (left := end - self._clock()) > 0:
            if self._wait(left):
                raise Cancelled


class Limited(Store):
    """Another store, to and from which chunks, patches and segments go at a :class:`Pace`."""

    def __init__(self, store: Store, pace: Pace) -> None:
        """Ask `store`, at the speed of `pace`, which others may share."""
        self._store = store
        self._pace = pace
        self.lag = store.lag  # type: ignore[misc]
        self.settle = store.settle  # type: ignore[misc]
        self.in_order = store.in_order  # type: ignore[misc]

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        """See :meth:`Store.put`."""
        if _is_paced(name):
            self._pace.take(sum(len(buffer) for buffer in buffers))
        self._store.put(name, *buffers, durable=durable, slot=slot)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        data = self._store.get(name, offset, length)
        if _is_paced(name):  # only now it is known how much it was
            self._pace.take(len(data))
        return data

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        self._store.delete(name)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See :meth:`Store.list`."""
        return self._store.list(prefix)

    def sync(self) -> None:
        """See :meth:`Store.sync`."""
        self._store.sync()

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._store.close()


def _is_paced(name: str) -> bool:
    return name.partition("/")[0] in _PACED
