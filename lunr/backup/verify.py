"""Verify: read and check every object that backups need, each once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import zip_longest

from lunr.backup import errors, parallel
from lunr.backup.format.names import Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry
from lunr.backup.pipeline import Progress
from lunr.backup.reading import Fetch, Reading
from lunr.backup.repository import Repository
from lunr.common.errors import LunrError

logger = logging.getLogger(__name__)

_SHOWN = 5
#: Indexes of objects that are kept, for the backups of a chain that share them: 14 KiB each.
_INDEXES = 2048
_BAD = (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat)


@dataclass(frozen=True)
class Verified:
    """What was checked: backups, distinct chunks, plain bytes, and the seconds it took."""

    backups: int
    chunks: int
    bytes_read: int
    seconds: float


def verify(
    repository: Repository,
    backup_ids: Iterable[str] | None = None,
    *,
    concurrency: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Verified:
    """Check the backups `backup_ids`, or all that the store lists.

    Goes on after a bad object, logs each, and raises in the end.

    Raises:
        errors.BackupMissing: one of `backup_ids` is not there.
        errors.WrongKey: a backup is not readable with these keys.
        errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat: the one bad object.
        errors.DamagedBackups: several; it names the first few.
    """
    started = time.monotonic()
    run = _Verify(repository, progress)
    chosen = list(repository.backup_ids() if backup_ids is None else backup_ids)
    parallel.each(run.steps(chosen), lambda step: step(), max(2, concurrency), cancel)
    if len(run.bad) == 1:
        raise next(iter(run.bad.values()))
    if run.bad:
        shown = " ".join(list(run.bad)[:_SHOWN])
        raise errors.DamagedBackups(count=len(run.bad), reasons=shown)
    return Verified(len(chosen), run.checked, run.bytes_read, round(time.monotonic() - started, 3))


class _Verify:
    def __init__(self, repository: Repository, progress: Progress | None) -> None:
        self.bad: dict[str, LunrError] = {}
        self.checked = self.bytes_read = 0
        self._repository = repository
        self._progress = progress or (lambda _done, _total: None)
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._open = lru_cache(_INDEXES)(Repository.open)

    def _report(self, error: LunrError) -> None:
        with self._lock:
            if str(error) not in self.bad:
                logger.error("%s", error)
                self.bad[str(error)] = error

    def steps(self, backup_ids: list[str]) -> Iterator[Callable[[], None]]:
        """What there is to do; each step may be done by any thread."""
        roots = []
        for backup_id in backup_ids:
            try:
                roots.append(self._repository.load_root(backup_id))
            except _BAD as error:
                self._report(error)
        self._total = sum(root.size_bytes for root in roots)
        owners = [self._repository.of(root) for root in roots]
        # Hashes: sets of the things themselves would be many times as big.
        segments: set[Ref] = set()
        entries: set[int] = set()
        objects: set[int] = set()
        # The same part of all backups, then the next: they share most of their objects.
        for column in zip_longest(*map(Repository.segments_of, owners, roots)):
            for owner, root, segment in zip(owners, roots, column, strict=True):
                if segment is None:
                    continue
                chunks, ref = segment
                held = self._held(owner, root, chunks, ref, segments, entries)
                reading = Reading(owner, held, root.size_bytes, root.geometry)
                for fetch in reading.fetches:
                    key = hash((fetch.kind, fetch.ref))
                    yield partial(self._check, owner, reading, fetch, key not in objects)
                    objects.add(key)

    def _held(
        self,
        owner: Repository,
        root: Root,
        chunks: range,
        ref: Ref | None,
        segments: set[Ref],
        entries: set[int],
    ) -> dict[int, Entry]:
        """The chunks of a segment that were not checked yet."""
        held: dict[int, Entry] = {}
        if ref is not None and ref not in segments:
            segments.add(ref)
            try:
                found = owner.load_segment(ref, len(chunks))
            except _BAD as error:
                self._report(error)
                found = []
            for chunk, entry in zip(chunks, found, strict=False):
                if entry is not None and hash(entry) not in entries:
                    entries.add(hash(entry))
                    held[chunk] = entry
        start, end = chunks.start * root.geometry.chunk, chunks.stop * root.geometry.chunk
        self.checked += len(held)
        self._advance(min(end, root.size_bytes) - start)
        return held

    def _check(self, owner: Repository, reading: Reading, fetch: Fetch, is_new: bool) -> None:
        """Check an object, unless that was done, and the chunks that were put together with it."""
        opened = None
        read = 0
        try:
            if fetch.ref is not None and is_new:
                opened = owner.open(fetch.ref, fetch.kind, whole=True)
                opened.read(0, len(opened.index.hashes))
                read = opened.index.plain_size
            elif fetch.ref is not None:
                opened = self._open(owner, fetch.ref, fetch.kind, whole=False)
            reading.check(fetch, opened)
        except _BAD as error:
            self._report(error)
        with self._lock:
            self.bytes_read += read

    def _advance(self, length: int) -> None:
        with self._lock:
            self._done += length
            done = self._done
        self._progress(done, self._total)
