"""The chunk objects of an account that a save may refer to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator

from lunr.backup import parallel
from lunr.backup.format.names import Ref
from lunr.backup.save.parent import UNUSABLE, Parent

logger = logging.getLogger(__name__)

#: How many chunks a save remembers to store each once (2 TiB's worth). Beyond, a chunk is only
#: compared with the parent's at the same place.
_REMEMBERED = 1 << 19


class ChunkIndex:
    """Chunk objects that the backup may refer to, by their content hash.

    It has the chunks of other backups, and those that the save itself has stored. The segments
    of the other backups are read when the first chunk is about to be stored: a save that stores
    none reads none.
    """

    def __init__(
        self,
        backups: Iterable[Parent],
        most: int,
        threads: int,
        slots: threading.Semaphore,
        cancel: threading.Event | None = None,
    ) -> None:
        """Make an empty index.

        Args:
            backups: the backups with the chunk objects, the likeliest first; iterated when the
                first chunk is about to be stored.
            most: how many of their segments are read.
            threads: how many are read at once.
            slots: bound the requests to the store.
            cancel: set to give up, with Cancelled.
        """
        self._backups = backups
        self._most = most
        self._threads = threads
        self._slots = slots
        self._cancel = cancel
        self._tokens: dict[bytes, bytes] = {}
        self._useless: set[str] = set()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._is_loaded = False

    def find(self, digest: bytes) -> Ref | None:
        """The object with this content, if it is known by now."""
        token = self._tokens.get(digest)
        return None if token is None else Ref(digest, token)

    def claim(self, ref: Ref) -> Ref | None:
        """The object to use instead of `ref`; None: the caller is the first and must store it.

        Another thread with the same chunk need not wait for that: if storing it fails, the whole
        save fails.
        """
        self.load()
        return self._claim(ref)

    def _claim(self, ref: Ref) -> Ref | None:
        with self._lock:
            token = self._tokens.get(ref.hash)
            if token is not None:
                return Ref(ref.hash, token)
            if len(self._tokens) < _REMEMBERED:
                self._tokens[ref.hash] = ref.token
            return None

    def load(self) -> None:
        """Read the chunk objects of the other backups once; other threads wait for that."""
        if self._is_loaded:
            return
        with self._loading:
            if not self._is_loaded:
                parallel.each(self._segments(), self._read, self._threads, self._cancel)
                self._is_loaded = True

    def _segments(self) -> Iterator[tuple[Parent, Ref, int]]:
        seen: set[Ref] = set()
        for backup in self._backups:
            for ref, chunks in backup.segments():
                if len(seen) == self._most:
                    return
                if ref not in seen:
                    seen.add(ref)
                    yield backup, ref, chunks

    def _read(self, segment: tuple[Parent, Ref, int]) -> None:
        backup, ref, chunks = segment
        backup_id = backup.root.backup_id
        if backup_id in self._useless:
            return
        try:
            with self._slots:
                refs = backup.chunk_objects(ref, chunks)
        except UNUSABLE as error:
            with self._lock:
                is_first = backup_id not in self._useless
                self._useless.add(backup_id)
            if is_first:
                logger.warning("Backup %s is searched no more for chunks: %s", backup_id, error)
            return
        for chunk_ref in refs:
            self._claim(chunk_ref)
