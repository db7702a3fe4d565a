"""The chunk objects that a save may refer to, wherever in the account they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator

from lunr.backup import parallel
from lunr.backup.format.names import Ref
from lunr.backup.save.parent import UNUSABLE, Parent

logger = logging.getLogger(__name__)

#: How many chunks a save remembers so as not to store them twice (2 TiB's
#: worth): beyond, equal chunks are only noticed where they were before.
_REMEMBERED = 1 << 19


class ChunkIndex:
    """Chunk objects that the backup may refer to, by their content hash.

    They are those of other backups, and those that the save itself has stored. The others'
    segments are read once, when the first chunk is about to be stored: so a save that stores
    none asks for nothing.
    """

    def __init__(
        self,
        backups: Iterable[Parent],
        most: int,
        threads: int,
        slots: threading.Semaphore,
        cancel: threading.Event | None = None,
    ) -> None:
        """Know nothing yet.

        Args:
            backups: whose chunk objects may be referred to, the likeliest first; gone through
                when they are needed.
            most: how many of their segments are read.
            threads: how many at once.
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
        self._learning = threading.Lock()
        self._has_learned = False

    def find(self, digest: bytes) -> Ref | None:
        """The object with this content, if it is known by now."""
        token = self._tokens.get(digest)
        return None if token is None else Ref(digest, token)

    def claim(self, ref: Ref) -> Ref | None:
        """The object to use instead of `ref`; None: nobody has claimed this content before.

        Who claims it first stores it. Another thread that meets the same chunk
        need not wait: if the first one fails, there will be no backup.
        """
        self.learn()
        return self._claim(ref)

    def _claim(self, ref: Ref) -> Ref | None:
        with self._lock:
            token = self._tokens.get(ref.hash)
            if token is not None:
                return Ref(ref.hash, token)
            if len(self._tokens) < _REMEMBERED:
                self._tokens[ref.hash] = ref.token
            return None

    def learn(self) -> None:
        """Know what the other backups have: who comes first reads it, the others wait."""
        if self._has_learned:
            return
        with self._learning:
            if not self._has_learned:
                parallel.each(self._segments(), self._read, self._threads, self._cancel)
                self._has_learned = True

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
                found = backup.chunk_objects(ref, chunks)
        except UNUSABLE as error:
            with self._lock:
                is_news = backup_id not in self._useless
                self._useless.add(backup_id)
            if is_news:
                logger.warning("Backup %s is not all read for its chunks: %s", backup_id, error)
            return
        for one in found:
            self._claim(one)
