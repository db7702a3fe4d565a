"""Garbage collection: mark and sweep. They may be months apart, or killed anywhere.

:func:`collect` (mark) finds the objects that no backup needs and writes their names to a list,
the pending deletion; it deletes nothing. :func:`sweep` deletes those that are still not
needed, once every writer that may refer to one of them without knowing the list has ended.

The proof that no needed object is deleted, in short (docs/format.md has all of it):
A name is needed only if a root refers to it. A writer refers only to names of its own, which
no other writer uses, or to names that the root of another backup (its parent, or a dedup
candidate) refers to. A writer registers its session, then reads the lists, then these roots.
So a writer either knows a list, or registered before the list could be swept, and the sweep
waits for it. The other backup may be deleted meanwhile: each of its names either stays until
the writer has ended, or was listed before, and then the writer does not use it.
After that wait no root can newly refer to a listed name, and the sweep reads all roots once
more. Names that are needed after all stay in a list that is marked as swept: another sweep of
the same list may be suspended with it in memory.

A listing may be old. A root is therefore also read by name when the caller (`keep`), a session
or the list knows of it. Sessions leave a note that stays for `grace` seconds, and a list is not
swept before it is `grace` seconds old; `grace` is at least twice the delay of listings.
The service knows every backup and delays sweeps itself: there `grace` is 0.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from lunr.backup import errors, parallel
from lunr.backup.format.names import Kind, Ref, condemned_name, root_name, session_name, token_of
from lunr.backup.format.segments import objects_of
from lunr.backup.repository import pending_deletion as lists
from lunr.backup.repository import sessions
from lunr.backup.repository.pending_deletion import PendingDeletion
from lunr.backup.repository.quarantine import subject_of
from lunr.backup.repository.repository import Repository
from lunr.common import ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MarkResult:
    """The result of a mark.

    Attributes:
        collection: the list's id, or None if there was no garbage.
        ``condemned``: how many objects it listed as pending deletion.
        unswept: other lists that wait for their sweep. The caller may not know them: a process
            may be killed between storing a list and reporting it.
    """

    collection: str | None
    condemned: int
    unswept: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: deleted objects, and their bytes."""

    deleted: int
    bytes_deleted: int


def collect(
    repository: Repository,
    keep: Iterable[str] = (),
    grace: float = 0.0,
    threads: int = 4,
    cancel: threading.Event | None = None,
    *,
    required: Collection[str] = (),
) -> MarkResult:
    """List the objects that no backup needs.

    Args:
        repository: the one to collect.
        keep: backups that may exist even if the store does not list them.
        grace: see the module.
        threads: how many requests to the store at once.
        cancel: set to give up, with Cancelled.
        required: backups that exist, even if the store answers that they don't.

    Raises:
        errors.RootMissing: the root of one of `required` is missing.
        errors.CorruptObject, errors.ObjectMissing, errors.WrongKey, errors.UnsupportedFormat:
            a root or segment can't be read, so the needed objects are unknown.
    """
    writers = _end_expired_sessions(repository, grace)
    needed = _needed(repository, [*keep, *writers.saves], required, threads, cancel)
    pending_lists = _load_lists(repository)
    unswept = tuple(
        collection for collection, pending in pending_lists.items() if not pending.swept
    )
    already = {name for collection in unswept for name in pending_lists[collection].objects}
    garbage: dict[str, int] = {}
    listed = set()
    swept = {
        name for pending in pending_lists.values() if pending.swept for name in pending.objects
    }
    for name, size in repository.store.list():
        if name in swept:
            listed.add(name)
        if (
            hash(subject_of(name)) not in needed
            and name not in already
            and token_of(name) not in writers.running
            and not _is_kept_by_kind(name)
        ):
            garbage[name] = size
            if len(garbage) == lists.MOST:
                break
    else:
        _forget_lists(repository, pending_lists, lambda name: name not in listed)
    # Objects saved since the roots were read are no garbage. The sweep would not delete them
    # (see above), but they would stay listed, and no later backup could refer to them.
    since = set(sessions.tokens(repository)) - writers.over
    garbage = {name: size for name, size in garbage.items() if token_of(name) not in since}
    if not garbage:
        return MarkResult(None, 0, unswept)
    collection = ids.new()
    lists.store(
        repository,
        collection,
        PendingDeletion(repository.clock(), garbage, tuple(sorted(writers.saves))),
    )
    return MarkResult(collection, len(garbage), unswept)


def sweep(
    repository: Repository,
    collection: str,
    keep: Iterable[str] = (),
    grace: float = 0.0,
    threads: int = 4,
    cancel: threading.Event | None = None,
    *,
    required: Collection[str] = (),
) -> SweepResult:
    """Delete the objects in the list `collection` that no backup needs. Can be repeated.

    Raises:
        errors.SavesRunning: a writer must end first, or the list is not old enough.
        errors.RootMissing, errors.CorruptObject and others: as :func:`collect`.
    """
    try:
        pending_deletion = lists.load(repository, collection)
    except errors.CorruptObject as error:
        # Nothing in it can be trusted; the next mark lists its objects again.
        logger.warning("A list of pending deletions was dropped, not swept: %s", error)
        repository.store.delete(condemned_name(collection))
        return SweepResult(0, 0)
    if pending_deletion is None:
        return SweepResult(0, 0)
    age = repository.clock() - pending_deletion.created
    if age < grace:
        raise errors.SavesRunning(
            id=collection, reason=f"it is {age:.0f} s old, {grace:.0f} s are needed."
        )
    writers = _end_expired_sessions(repository, grace, collection)
    # Only now, when nothing can refer to a listed name any more:
    saves = [*keep, *writers.saves, *pending_deletion.saves]
    needed = _needed(repository, saves, required, threads, cancel)
    doomed = {
        n: size for n, size in pending_deletion.objects.items() if hash(subject_of(n)) not in needed
    }
    parallel.each(doomed, repository.store.delete, threads, cancel)
    repository.store.sync()
    rescued = {name: size for name, size in pending_deletion.objects.items() if name not in doomed}
    if rescued:
        rest = replace(pending_deletion, objects=rescued, swept=True)
        lists.store(repository, collection, rest)
    else:
        repository.store.delete(condemned_name(collection))
    _forget_lists(repository, _load_lists(repository), lambda name: name in doomed)
    return SweepResult(len(doomed), sum(doomed.values()))


def _load_lists(repository: Repository) -> dict[str, PendingDeletion]:
    """All lists. An unreadable one counts as empty: its sweep drops it."""
    loaded = {}
    for collection in lists.listed(repository):
        try:
            pending = lists.load(repository, collection)
        except errors.CorruptObject as error:
            logger.warning("A list of pending deletions waits for its sweep: %s", error)
            pending = PendingDeletion(repository.clock(), {}, ())
        if pending is not None:
            loaded[collection] = pending
    return loaded


def _forget_lists(
    repository: Repository,
    pending_lists: Mapping[str, PendingDeletion],
    is_gone: Callable[[str], bool],
) -> None:
    """Remove the swept lists of which every object is gone.

    The youngest stay: a listing may not show their objects yet.
    """
    oldest = repository.clock() - repository.store.lag
    for collection, pending in pending_lists.items():
        if pending.swept and pending.created <= oldest and all(map(is_gone, pending.objects)):
            repository.store.delete(condemned_name(collection))


def _is_kept_by_kind(name: str) -> bool:
    """Whether `name` is a root, session or list, and not an unfinished file of a killed writer."""
    kind, _, rest = name.partition("/")
    return kind in (Kind.ROOT, Kind.SESSION, Kind.CONDEMNED) and ids.is_valid(rest)


@dataclass(frozen=True)
class _Writers:
    """The writer sessions.

    Attributes:
        running: the tokens of those that are not over.
        over: the tokens of those that are over.
        saves: ids of the backups of both.
    """

    running: set[bytes]
    over: set[bytes]
    saves: set[str]


def _end_expired_sessions(
    repository: Repository, grace: float, collection: str | None = None
) -> _Writers:
    """The writer sessions; those that are over are marked as ended.

    The mark stops a writer that was only suspended. Notes of ended sessions are removed after
    `grace` seconds.

    Raises:
        errors.SavesRunning: a session still runs that does not know `collection`.
    """
    writers = _Writers(set(), set(), set())
    now = repository.clock()
    for token, session in sessions.load_all(repository):
        over = session.over(now, repository.store.settle)
        if over is None and collection is not None and collection not in session.knows:
            raise errors.SavesRunning(
                id=collection, reason=f"backup {session.backup_id} is still being saved."
            )
        writers.saves.add(session.backup_id)
        if over is None:
            writers.running.add(token)
            continue
        writers.over.add(token)
        if session.ended is None:
            ended = replace(session, ended=over)
            repository.store.put(session_name(token), ended.encode(), durable=True)
        if now - over >= grace:
            repository.store.delete(session_name(token))
    return writers


def _needed(
    repository: Repository,
    keep: Iterable[str],
    required: Collection[str],
    threads: int,
    cancel: threading.Event | None,
) -> set[int]:
    """The hashes of the names that backups need (a set of the names would be four times as big).

    A name whose hash is that of a needed one stays: that keeps some garbage and loses nothing.
    """
    needed: set[int] = set()
    done: set[Ref] = set()
    must = frozenset(required)

    def segments() -> Iterator[tuple[Repository, Ref, int]]:
        for backup_id in dict.fromkeys([*required, *repository.backup_ids(), *keep]):
            try:
                root = repository.load_root(backup_id)
            except errors.BackupMissing:
                if backup_id in must:
                    raise errors.RootMissing(id=backup_id) from None
                continue
            needed.add(hash(root_name(backup_id)))
            for chunks, ref in repository.segments_of(root):
                if ref is not None and ref not in done:
                    done.add(ref)
                    yield repository.of(root), ref, len(chunks)

    def mark(segment: tuple[Repository, Ref, int]) -> None:
        owner, ref, chunks = segment
        needed.add(hash(ref.name(Kind.SEGMENT)))
        for name in objects_of(*owner.load_segment(ref, chunks)):
            needed.add(hash(name))

    parallel.each(segments(), mark, threads, cancel)
    return needed
