"""A store of which no more than so many bytes a second are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lunr.backup.format.names import Buffer, Kind
from lunr.backup.stores.base import AT_ONCE, Slot, Store
from lunr.common.errors import Cancelled
from lunr.common.rate import TokenBucket

#: The kinds of objects that are limited. Sessions and roots are small and urgent: others take a
#: writer that gives no sign of life for dead.
_PACED = frozenset({Kind.CHUNK, Kind.PATCH, Kind.SEGMENT})


class Limited(Store):
    """Another store, with a limit of the bytes a second of chunks, patches and segments."""

    def __init__(self, store: Store, bucket: TokenBucket, wait: Callable[[float], bool]) -> None:
        """Ask `store`, as fast as `bucket` lets it, which others may share.

        `wait` waits for so many seconds, and returns whether all was cancelled meanwhile.
        """
        self._store = store
        self._bucket = bucket
        self._wait = wait
        self.lag = store.lag  # type: ignore[misc]
        self.settle = store.settle  # type: ignore[misc]
        self.in_order = store.in_order  # type: ignore[misc]

    def _acquire(self, count: int) -> None:
        if (left := self._bucket.take(count)) > 0 and self._wait(left):
            raise Cancelled

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        """See :meth:`Store.put`."""
        if _is_paced(name):
            self._acquire(sum(len(buffer) for buffer in buffers))
        self._store.put(name, *buffers, durable=durable, slot=slot)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        data = self._store.get(name, offset, length)
        if _is_paced(name):  # only now it is known how much it was
            self._acquire(len(data))
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
