"""A store in memory: for tests, and to measure the engine without a disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.backup.stores.base import AT_ONCE, Slot, Store


class MemoryStore(Store):
    """Objects in a dict."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(
        self,
        name: str,
        *buffers: Buffer,
        durable: bool = False,  # noqa: ARG002
        slot: Slot = AT_ONCE,
    ) -> None:
        """See :meth:`Store.put`."""
        data = b"".join(buffers)
        with slot, self._lock:
            self.objects[name] = data

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        try:
            data = self.objects[name]
        except KeyError:
            raise errors.ObjectMissing(name=name) from None
        return data[offset:] if length is None else data[offset : offset + length]

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        with self._lock:
            self.objects.pop(name, None)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See :meth:`Store.list`."""
        with self._lock:
            objects = [(n, len(data)) for n, data in self.objects.items() if n.startswith(prefix)]
        yield from objects

    def sync(self) -> None:
        """See :meth:`Store.sync`: nothing in memory survives a power cut."""

    def close(self) -> None:
        """See :meth:`Store.close`."""
