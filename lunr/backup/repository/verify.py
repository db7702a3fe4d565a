"""Verify: read and check every object that backups need, or a share of them, each once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import zip_longest

from lunr.backup import errors, parallel
from lunr.backup.format.names import Kind, Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry
from lunr.backup.read.plan import ObjectFetch, ReadPlan
from lunr.backup.repository import quarantine
from lunr.backup.repository.repository import Repository
from lunr.backup.save.save import Progress
from lunr.common.errors import LunrError

logger = logging.getLogger(__name__)

#: Indexes of objects that are kept, for the backups of a chain that share them: 14 KiB each.
_INDEXES = 2048
_BAD = (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat)


@dataclass(frozen=True)
class VerifyShard:
    """One of `of` shares of a store's objects, for verifications that read a share a day."""

    number: int
    of: int

    def has(self, ref: Ref) -> bool:
        """Whether an object is in it."""
        return int.from_bytes(ref.hash[:8]) % self.of == self.number % self.of


@dataclass(frozen=True)
class Verified:
    """The result of a verification.

    Attributes:
        backups: how many were verified.
        objects: how many chunk and patch objects were read.
        bytes_read: the plain bytes in them.
        damaged: the damage of each damaged backup, by its id; also of other backups that need
            the same objects.
        seconds: how long it took.
    """

    backups: int
    objects: int
    bytes_read: int
    damaged: dict[str, str]
    seconds: float


def verify(
    repository: Repository,
    backup_ids: Iterable[str] | None = None,
    *,
    share: VerifyShard | None = None,
    concurrency: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Verified:
    """Check the backups `backup_ids`, or all that the store lists.

    A bad object goes into quarantine (:mod:`lunr.backup.repository.quarantine`); a good one
    leaves it. If the store can't be read, the verification ends: that says nothing about the
    objects.

    Args:
        repository: the one of the backups.
        backup_ids: the backups to verify; a missing one is damaged.
        share: the chunk and patch objects to read. Roots and segments are always read.
        concurrency: requests to the store at once; 1 does everything in this thread.
        progress: called with the bytes done and in all.
        cancel: set to give up within a second, with Cancelled.

    Raises:
        errors.StoreUnavailable, errors.StoreRefused: the store can't be read.
    """
    started = time.monotonic()
    listed = frozenset(repository.backup_ids())
    chosen = sorted(listed) if backup_ids is None else list(dict.fromkeys(backup_ids))
    noted = quarantine.names(repository)
    run = _Verify(repository, share, noted, progress)
    roots = run.load_roots(chosen, listed)
    parallel.each(run.steps(roots), lambda step: step(), concurrency, cancel)
    for name in noted & run.good - run.bad.keys():
        logger.info("The object %s is good again", name)
        quarantine.remove_object(repository, name)
    for name in run.bad.keys() - noted:
        quarantine.add_object(repository, name, run.bad[name])
    bad = {name: f"The object {name} was found bad before." for name in noted - run.good} | run.bad
    if bad:
        others = run.load_roots(sorted(listed.difference(chosen)), listed)
        run.damaged |= quarantine.find_damaged_backups(
            repository, [*roots, *others], bad, concurrency, cancel
        )
    return Verified(
        len(chosen),
        run.objects,
        run.bytes_read,
        run.damaged,
        round(time.monotonic() - started, 3),
    )


class _Verify:
    """One verification: the bad objects with their damage, and those that are good again."""

    def __init__(
        self,
        repository: Repository,
        share: VerifyShard | None,
        noted: Collection[str],
        progress: Progress | None,
    ) -> None:
        self.bad: dict[str, str] = {}
        self.good: set[str] = set()
        self.damaged: dict[str, str] = {}
        self.objects = self.bytes_read = 0
        self._repository = repository
        self._share = share
        self._noted = noted
        self._progress = progress or (lambda _done, _total: None)
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._open = lru_cache(_INDEXES)(Repository.open)

    def _report(self, error: LunrError) -> None:
        logger.error("%s", error)
        with self._lock:
            for name in quarantine.names_in(error):
                self.bad.setdefault(name, str(error))

    def load_roots(self, backup_ids: Iterable[str], listed: Collection[str]) -> list[Root]:
        """The readable roots; the backups of the others are noted as damaged.

        A backup that was `listed` and is gone was deleted meanwhile.
        """
        roots = []
        for backup_id in backup_ids:
            try:
                roots.append(self._repository.load_root(backup_id))
            except errors.BackupMissing as error:
                if backup_id not in listed:
                    self._add_damage(backup_id, error)
            except (*_BAD, errors.WrongKey) as error:
                self._add_damage(backup_id, error)
        return roots

    def _add_damage(self, backup_id: str, error: LunrError) -> None:
        logger.error("%s", error)
        self.damaged[backup_id] = str(error)

    def steps(self, roots: list[Root]) -> Iterator[Callable[[], None]]:
        """The steps of the verification; any thread may run each."""
        self._total = sum(root.size_bytes for root in roots)
        owners = [self._repository.of(root) for root in roots]
        # Hashes: sets of the entries and names themselves would be many times as big.
        segments: set[Ref] = set()
        entries: set[int] = set()
        objects: set[int] = set()
        # The same segment of all backups, then the next: they share most of their objects.
        for column in zip_longest(*map(Repository.segments_of, owners, roots)):
            for owner, root, segment in zip(owners, roots, column, strict=True):
                if segment is None:
                    continue
                chunks, ref = segment
                held = self._held(owner, root, chunks, ref, segments, entries)
                reading = ReadPlan(owner, held, root.size_bytes, root.geometry)
                for fetch in reading.fetches:
                    key = hash((fetch.kind, fetch.ref))
                    is_new = key not in objects
                    if self._share is None:
                        yield partial(self._check, owner, reading, fetch, is_new)
                    elif is_new and self._is_due(fetch):
                        yield partial(self._check, owner, None, fetch, is_new)
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
            loaded: list[Entry] = []
            try:
                loaded = owner.load_segment(ref, len(chunks))
            except _BAD as error:
                self._report(error)
            else:
                self._note_good(ref.name(Kind.SEGMENT))
            for chunk, entry in zip(chunks, loaded, strict=False):
                if entry is not None and hash(entry) not in entries:
                    entries.add(hash(entry))
                    held[chunk] = entry
        start, end = chunks.start * root.geometry.chunk, chunks.stop * root.geometry.chunk
        self._advance(min(end, root.size_bytes) - start)
        return held

    def _is_due(self, fetch: ObjectFetch) -> bool:
        ref = fetch.ref
        return ref is not None and (
            self._share is None or self._share.has(ref) or ref.name(fetch.kind) in self._noted
        )

    def _check(
        self, owner: Repository, reading: ReadPlan | None, fetch: ObjectFetch, is_new: bool
    ) -> None:
        """Check an object, unless that was done, and the chunks that it completes."""
        opened = None
        try:
            if fetch.ref is not None and is_new:
                opened = owner.open(fetch.ref, fetch.kind, whole=True)
                opened.read(0, len(opened.index.hashes))
                with self._lock:
                    self.objects += 1
                    self.bytes_read += opened.index.plain_size
                self._note_good(opened.name)
            elif fetch.ref is not None:
                opened = self._open(owner, fetch.ref, fetch.kind, whole=False)
            if reading is not None:
                reading.check(fetch, opened)
        except _BAD as error:
            self._report(error)

    def _note_good(self, name: str) -> None:
        if name in self._noted:
            with self._lock:
                self.good.add(name)

    def _advance(self, length: int) -> None:
        with self._lock:
            self._done += length
            done = self._done
        self._progress(done, self._total)
