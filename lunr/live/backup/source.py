"""A disk of a virtual machine as it was at one instant, read over NBD."""

from __future__ import annotations

import logging
import mmap
import queue
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lunr.common.extents import Extent, Extents, cover, merge
from lunr.live import errors
from lunr.live.qemu import nbd

logger = logging.getLogger(__name__)

#: The most extents that a list of changes has. A bitmap of a large disk could have more
#: than there is memory for; more is read then, never less.
MOST_EXTENTS = 1 << 18

#: Bytes at a disk's beginning, with its partition table or the superblock of a file system. QEMU
#: may answer a read of unallocated bytes without asking the disk.
_BEGINNING = 4096


class NbdSource:
    """A :class:`lunr.backup.save.block_source.Source` on an export of QEMU's.

    Attributes:
        size: how many bytes are to be saved.
    """

    def __init__(
        self,
        name: str,
        connections: Sequence[nbd.Connection],
        allocated: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Read over all of `connections`.

        Args:
            name: for messages.
            connections: to the same export.
            allocated: the ranges outside of which there are only zeros; None: unknown.
        """
        self.size = connections[0].size
        self._name = name
        self._allocated = Extents([(0, self.size)] if allocated is None else allocated)
        self._free: queue.LifoQueue[nbd.Connection] = queue.LifoQueue()
        for connection in connections:
            self._free.put(connection)

    @contextmanager
    def _connection(self, offset: int) -> Iterator[nbd.Connection]:
        connection = self._free.get()
        try:
            with _lost(self._name, offset):
                yield connection
        finally:
            self._free.put(connection)  # a broken one fails the next read, too

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See :meth:`Source.data`."""
        return self._allocated.within(start, end)

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`Source.read`."""
        view = memoryview(buffer)[:length]
        with self._connection(offset) as connection:
            connection.read(view, offset)
        return view


@contextmanager
def _lost(name: str, offset: int = 0) -> Iterator[None]:
    """Raise ExportLost for errors of the connection to the export of the disk `name`."""
    try:
        yield
    except OSError as error:
        raise errors.ExportLost(
            path=name, offset=offset, reason=f"{error.strerror or error}."
        ) from error


def ranges(
    name: str, connection: nbd.Connection, *, matches: Callable[[int], bool]
) -> list[Extent]:
    """The ranges whose flags in the map of `connection` satisfy `matches`.

    Raises:
        errors.ExportLost: it can't be read.
    """
    extents = connection.extents(0, connection.size)
    asked_for = ((at, stop) for at, stop, flags in extents if matches(flags))
    with _lost(name):
        return cover(asked_for, MOST_EXTENTS, connection.size)


def await_answers(name: str, connection: nbd.Connection) -> None:
    """Return when a read and a flush are answered, even by an error.

    Raises:
        errors.ExportLost: there is no answer.
    """
    beginning = memoryview(bytearray(min(_BEGINNING, connection.size)))
    asks: list[Callable[[], None]] = [lambda: connection.read(beginning, 0), connection.flush]
    for ask in asks:
        with _lost(name):
            try:
                ask()
            except nbd.NbdError as error:
                logger.warning("%s: %s.", name, error.strerror or error)


def union(first: list[Extent], second: list[Extent], size: int) -> list[Extent]:
    """The union of `first` and `second`, extents of a disk of `size` bytes."""
    return cover(merge(first, second), MOST_EXTENTS, size)


def negotiate(
    name: str, sockets: Sequence[socket.socket], export: str, context: str
) -> list[nbd.Connection]:
    """A connection to `export` over each of `sockets`, with the map `context`.

    Raises:
        errors.ExportLost: the server refuses; the message has `name`.
    """
    with _lost(name):
        return [nbd.Connection(sock, export, context) for sock in sockets]
