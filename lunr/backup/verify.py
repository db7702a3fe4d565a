"""Verify: read and check every object that backups need, each once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lunr.backup import errors, parallel
from lunr.backup.format.names import Geometry, Ref
from lunr.backup.format.segments import Patched
from lunr.backup.pipeline import Progress
from lunr.backup.repository import Repository
from lunr.common.errors import LunrError

logger = logging.getLogger(__name__)

_SHOWN = 5
_BAD = (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat)


@dataclass(frozen=True)
class Verified:
    """What was checked: backups, distinct chunks, their plain bytes, and the seconds it took."""

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
    parallel.each(run.chunks(chosen), run.check, max(2, concurrency), cancel)
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

    def _report(self, error: LunrError) -> None:
        with self._lock:
            if str(error) not in self.bad:
                logger.error("%s", error)
                self.bad[str(error)] = error

    def chunks(self, backup_ids: list[str]) -> Iterator[tuple[Ref | Patched, int, Geometry]]:
        """Each distinct chunk of the backups, its length and how it is cut."""
        seen: set[int] = set()  # hashes: a set of the entries would be many times as big
        segments: set[Ref] = set()
        roots = []
        for backup_id in backup_ids:
            try:
                roots.append(self._repository.load_root(backup_id))
            except _BAD as error:
                self._report(error)
        self._total = sum(root.size_bytes for root in roots)
        for root in roots:
            size, unit = root.size_bytes, root.geometry.chunk
            for chunks, ref in self._repository.segments_of(root):
                if ref is None or ref in segments:
                    self._advance(min(chunks.stop * unit, size) - chunks.start * unit)
                    continue
                segments.add(ref)
                try:
                    entries = self._repository.load_segment(ref, len(chunks))
                except _BAD as error:
                    self._report(error)
                    continue
                for chunk, entry in zip(chunks, entries, strict=True):
                    length = root.geometry.chunk_length(chunk, size)
                    if entry is None or hash(entry) in seen:
                        self._advance(length)
                    else:
                        seen.add(hash(entry))
                        yield entry, length, root.geometry

    def check(self, item: tuple[Ref | Patched, int, Geometry]) -> None:
        """Read one chunk and check it."""
        entry, length, geometry = item
        try:
            self._repository.load_chunk(entry, length, geometry)
        except _BAD as error:
            self._report(error)
        with self._lock:
            self.checked += 1
            self.bytes_read += length
        self._advance(length)

    def _advance(self, length: int) -> None:
        with self._lock:
            self._done += length
            done = self._done
        self._progress(done, self._total)
