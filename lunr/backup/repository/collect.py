"""Garbage collection, in two steps that may be months apart or killed anywhere.

:func:`collect` looks for objects that no backup needs and condemns them: it
writes their names to a list and deletes nothing. :func:`sweep` deletes those
that are still not needed, once no writer is left that might refer to one of
them without knowing the list.

Why nothing that is needed goes, in short (docs/format.md has the whole of it):
a name is needed only if a root refers to it, and a writer refers only to names
of its own, which nobody else ever uses, or to names that the root of another
backup (its parent, or one like it) refers to. A writer registers its session,
then reads the lists, then these roots. So a writer either knows a list or was
registered before the list could be swept, and the sweep waits for it. Whether
the other backup is deleted meanwhile makes no difference: what the writer found
there stays until the writer is over, or was listed before and is not used.
After that wait no new reference to a listed name can appear, and the sweep
looks through all roots once more. What it finds to be needed after all stays
listed, in a list that says that it was swept: another sweep of the same list
may be asleep with it in memory.

What a listing shows may be old. A root is therefore also asked for by name:
when the caller knows of it (`keep`), or a session or the list does. Sessions
leave a note that stays for `grace` seconds, and a list is not swept before it
is `grace` seconds old; `grace` is at least twice what listings may be behind.
The service knows every backup and holds sweeps back itself: there it is 0.
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
    """What a collection found.

    Attributes:
        collection: its id, or None when there was nothing to list.
        condemned: how many objects it listed; the public name of what is pending deletion.
        unswept: other collections whose lists are there and wait for their sweep: nobody may
            know of them, as who stored one may have been killed before it could tell.
    """

    collection: str | None
    condemned: int
    unswept: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepResult:
    """What a sweep removed: objects, and their bytes."""

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
    """Condemn what no backup needs.

    Args:
        repository: whose objects.
        keep: backups that may be there, whether or not the store lists them.
        grace: see the module.
        threads: how many requests to the store at once.
        cancel: set to give up, with Cancelled.
        required: backups that are there: a store that denies it is not believed.

    Raises:
        errors.RootMissing: the root of one of `required` is not there.
        errors.CorruptObject, errors.ObjectMissing, errors.WrongKey, errors.UnsupportedFormat:
            a root or segment can't be read, so nobody can tell what is needed.
    """
    writers = _look_at_sessions(repository, grace)
    needed = _needed(repository, [*keep, *writers.saves], required, threads, cancel)
    old = _load_lists(repository)
    unswept = tuple(collection for collection, one in old.items() if not one.swept)
    already = {name for collection in unswept for name in old[collection].objects}
    found: dict[str, int] = {}
    listed = set()
    swept = {name for one in old.values() if one.swept for name in one.objects}
    for name, size in repository.store.list():
        if name in swept:
            listed.add(name)
        if (
            hash(subject_of(name)) not in needed
            and name not in already
            and token_of(name) not in writers.running
            and not _is_kept_by_kind(name)
        ):
            found[name] = size
            if len(found) == lists.MOST:
                break
    else:
        _forget_lists(repository, old, lambda name: name not in listed)
    # What was saved since the roots were looked at is no garbage. It would not be lost (see
    # above), but stay listed, and no later backup could build upon it.
    since = set(sessions.tokens(repository)) - writers.over
    found = {name: size for name, size in found.items() if token_of(name) not in since}
    if not found:
        return MarkResult(None, 0, unswept)
    collection = ids.new()
    lists.store(
        repository,
        collection,
        PendingDeletion(repository.clock(), found, tuple(sorted(writers.saves))),
    )
    return MarkResult(collection, len(found), unswept)


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
    """Delete what `collection` lists and still no backup needs. Can be done again.

    Raises:
        errors.SavesRunning: a writer must end first, or the list is not old enough.
        errors.RootMissing, errors.CorruptObject and others: as :func:`collect`.
    """
    try:
        pending_deletion = lists.load(repository, collection)
    except errors.CorruptObject as error:
        # Nothing in it can be trusted; what it named is found again.
        logger.warning("Dropped without sweeping it: %s", error)
        repository.store.delete(condemned_name(collection))
        return SweepResult(0, 0)
    if pending_deletion is None:
        return SweepResult(0, 0)
    age = repository.clock() - pending_deletion.created
    if age < grace:
        raise errors.SavesRunning(
            id=collection, reason=f"it is {age:.0f} s old, {grace:.0f} s are needed."
        )
    writers = _look_at_sessions(repository, grace, collection)
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
    """All lists. One that can't be read seems to name nothing: its sweep drops it."""
    found = {}
    for collection in lists.listed(repository):
        try:
            one = lists.load(repository, collection)
        except errors.CorruptObject as error:
            logger.warning("It waits for its sweep: %s", error)
            one = PendingDeletion(repository.clock(), {}, ())
        if one is not None:
            found[collection] = one
    return found


def _forget_lists(
    repository: Repository, old: Mapping[str, PendingDeletion], is_gone: Callable[[str], bool]
) -> None:
    """Remove the swept lists of which every object is gone.

    Not the youngest: a listing may not show yet what they name.
    """
    oldest = repository.clock() - repository.store.lag
    for collection, one in old.items():
        if one.swept and one.created <= oldest and all(map(is_gone, one.objects)):
            repository.store.delete(condemned_name(collection))


def _is_kept_by_kind(name: str) -> bool:
    """Roots, sessions and lists are not garbage, but for what a killed writer left unfinished."""
    kind, _, rest = name.partition("/")
    return kind in (Kind.ROOT, Kind.SESSION, Kind.CONDEMNED) and ids.is_valid(rest)


@dataclass(frozen=True)
class _Writers:
    """Who writes, and who wrote of late.

    Attributes:
        running: the tokens of the sessions that are not over.
        over: of those that are.
        saves: ids of the backups of both.
    """

    running: set[bytes]
    over: set[bytes]
    saves: set[str]


def _look_at_sessions(
    repository: Repository, grace: float, collection: str | None = None
) -> _Writers:
    """Who writes now.

    Sessions that are over are ended for them, so that a writer that was only
    asleep sees it; notes that are old enough are removed.

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

    Two names with one hash keep each other: some garbage stays, nothing is lost.
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
