"""Restore: fetch, check and write every chunk of a backup, in parallel."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lunr.backup import errors, parallel
from lunr.backup.format.roots import Root
from lunr.backup.read.plan import ObjectFetch, ReadPlan
from lunr.backup.read.restore_target import FileTarget
from lunr.backup.read.target_users import find_users
from lunr.backup.repository.repository import Repository
from lunr.backup.save.save import Progress
from lunr.common.linux import reuse_memory


@dataclass(frozen=True)
class Restored:
    """The result of a restore: bytes that were not zeros, and its seconds."""

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
    refuse_used: bool = False,
    concurrency: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Restored:
    """Make `target` read as the backup, and as zeros beyond it. Can be repeated.

    Args:
        repository: where from.
        backup_id: the backup's.
        target: a file or block device, at least as large as the backup.
        size_bytes: the least size of `target`, if larger than the backup.
        target_is_zero: it reads as zeros everywhere: zeros need not be written.
        create: if `target` does not exist, make a sparse file.
        refuse_used: write nothing if something else uses `target`.
        concurrency: requests to the store at once; 1 does everything in this thread.
        progress: called with the bytes done and in all.
        cancel: set to give up within a second, with Cancelled.

    Raises:
        errors.BackupMissing: there is no such backup.
        errors.TargetTooSmall, errors.TargetError: the target can't be used.
        errors.TargetInUse: with `refuse_used`, it is mounted, claimed or open for writing.
        errors.CorruptObject, errors.ObjectMissing: the named object can't be used.
    """
    reuse_memory()
    started = time.monotonic()
    root = repository.load_root(backup_id)
    repository = repository.of(root)
    if refuse_used and (users := find_users(target)):
        raise errors.TargetInUse(path=target, by="; ".join(users))
    out = FileTarget(target, max(root.size_bytes, size_bytes or 0), create)
    try:
        run = _Restore(repository, root, out, target_is_zero or out.is_new, concurrency, progress)
        parallel.each(run.steps(), lambda step: step(), parallel.threads_for(concurrency), cancel)
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
        concurrency: int,
        progress: Progress | None,
    ) -> None:
        self.bytes_read = 0
        self._repository = repository
        self._root = root
        self._out = out
        self._is_zero = is_zero
        self._progress = progress or (lambda _done, _total: None)
        self._slots = threading.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._done = 0

    def steps(self) -> Iterator[Callable[[], None]]:
        """The steps of the restore, in the order of the volume; any thread may run each."""
        size, geometry = self._root.size_bytes, self._root.geometry
        hole = 0  # where the zeros begin that reach to `offset`
        for chunks, ref in self._repository.segments_of(self._root):
            if ref is None:
                continue
            entries = self._repository.load_segment(ref, len(chunks))
            held = {chunk: e for chunk, e in zip(chunks, entries, strict=True) if e is not None}
            for chunk in held:
                offset = chunk * geometry.chunk
                if hole < offset:
                    yield partial(self._zero, hole, offset - hole)
                hole = offset + geometry.chunk_length(chunk, size)
            reading = ReadPlan(self._repository, held, size, geometry)
            for fetch in reading.fetches:
                yield partial(self._fetch, reading, fetch)
        if hole < self._out.size:
            yield partial(self._zero, hole, self._out.size - hole)

    def _fetch(self, reading: ReadPlan, fetch: ObjectFetch) -> None:
        done = 0
        with contextlib.ExitStack() as turn:
            turn.enter_context(self._slots)
            opened = reading.open(fetch)
            if opened is None or opened.is_whole:  # no further requests to the store
                turn.close()
            reading.check(fetch, opened)
            for offset, data, length in reading.parts(fetch, opened):
                if data is not None:
                    self._out.write(data, offset)
                elif not self._is_zero:
                    self._out.zero(offset, length)
                done += length
        self._advance(done, done)

    def _zero(self, offset: int, length: int) -> None:
        if not self._is_zero:
            self._out.zero(offset, length)
        self._advance(length, 0)

    def _advance(self, done: int, read: int) -> None:
        with self._lock:
            self.bytes_read += read
            self._done += done
            shown = min(self._done, self._root.size_bytes)
        self._progress(shown, self._root.size_bytes)
