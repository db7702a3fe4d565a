"""Restore: fetch, check and write every chunk of a backup, in parallel."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lunr.backup import parallel
from lunr.backup.format.names import Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Patched
from lunr.backup.pipeline import Progress
from lunr.backup.repository import Repository
from lunr.backup.targets import FileTarget


@dataclass(frozen=True)
class Restored:
    """What a restore did: bytes that were not zeros, and the seconds it took."""

    bytes_read: int
    seconds: float


def restore(
    repository: Repository,
    backup_id: str,
    target: Path,
    *,
    size_bytes: int | None = None,
    target_is_zero: bool = False,
    create: bool = False,
    concurrency: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Restored:
    """Make `target` read as the backup, and as zeros beyond it. Can be done again.

    Args:
        repository: where from.
        backup_id: which backup.
        target: a file or block device, at least as large as the backup.
        size_bytes: what `target` must have at least, should that be more.
        target_is_zero: it reads as zeros everywhere: zeros need not be written.
        create: make `target`, a sparse file, when there is none.
        concurrency: requests to the store at once.
        progress: told what is done.
        cancel: set to give up within a second, with Cancelled.

    Raises:
        errors.BackupMissing: there is no such backup.
        errors.TargetTooSmall, errors.TargetError: the target does not do.
        errors.CorruptObject, errors.ObjectMissing: the named object can't be used.
    """
    started = time.monotonic()
    root = repository.load_root(backup_id)
    repository = repository.of(root)
    out = FileTarget(target, max(root.size_bytes, size_bytes or 0), create)
    try:
        run = _Restore(repository, root, out, target_is_zero or out.is_new, progress)
        parallel.each(run.ranges(), run.restore, max(2, concurrency), cancel)
        out.sync()
    except BaseException:
        out.abandon()
        raise
    out.close()
    return Restored(run.bytes_read, round(time.monotonic() - started, 3))


class _Restore:
    def __init__(
        self,
        repository: Repository,
        root: Root,
        out: FileTarget,
        is_zero: bool,
        progress: Progress | None,
    ) -> None:
        self.bytes_read = 0
        self._repository = repository
        self._root = root
        self._out = out
        self._is_zero = is_zero
        self._progress = progress or (lambda _done, _total: None)
        self._lock = threading.Lock()
        self._done = 0

    def ranges(self) -> Iterator[tuple[int, int, Ref | Patched | None]]:
        """Ranges of the target (offset, length) and what they hold; None: zeros."""
        size, geometry = self._root.size_bytes, self._root.geometry
        hole = 0  # bytes of zeros right before `offset`
        offset = 0
        for chunks, ref in self._repository.segments_of(self._root):
            if ref is None:
                end = min(chunks.stop * geometry.chunk, size)
                hole += end - offset
                offset = end
                continue
            for chunk, entry in zip(
                chunks, self._repository.load_segment(ref, len(chunks)), strict=True
            ):
                length = geometry.chunk_length(chunk, size)
                if entry is None:
                    hole += length
                else:
                    if hole:
                        yield offset - hole, hole, None
                        hole = 0
                    yield offset, length, entry
                offset += length
        if hole:
            yield offset - hole, hole, None
        if self._out.size > size:
            yield size, self._out.size - size, None

    def restore(self, item: tuple[int, int, Ref | Patched | None]) -> None:
        """Write one range."""
        offset, length, entry = item
        if entry is not None:
            data = self._repository.load_chunk(entry, length, self._root.geometry)
            self._out.write(data, offset)
        elif not self._is_zero:
            self._out.zero(offset, length)
        with self._lock:
            self.bytes_read += length if entry is not None else 0
            self._done += length
            done = min(self._done, self._root.size_bytes)
        self._progress(done, self._root.size_bytes)
