"""Quarantine of damaged objects, and the backups that need them.

A verification that finds a damaged object stores a note of its name. No save refers to that
object from then on; the next backup of a volume that still has the data stores it again. A note
is a hint: while a listing does not show it yet, a save may refer to the object, and the next
verification finds that backup. A note is garbage as soon as no backup needs the object.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping

from lunr.backup import errors, parallel
from lunr.backup.format.names import VERSION, Kind, Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import objects_of
from lunr.backup.repository.repository import Repository
from lunr.common.errors import LunrError

_SHOWN = 3


def note_name(name: str) -> str:
    """The name of the note that puts the object `name` in quarantine."""
    return f"{Kind.BAD}/{name}"


def subject_of(name: str) -> str:
    """The object that the note `name` is about; any other `name` itself."""
    return name.removeprefix(f"{Kind.BAD}/")


def add_object(repository: Repository, name: str, reason: str) -> None:
    """Put the object `name` in quarantine: no save refers to it any more."""
    note = {"format": VERSION, "reason": reason, "found": repository.clock()}
    repository.store.put(note_name(name), json.dumps(note).encode(), durable=True)


def names(repository: Repository) -> frozenset[str]:
    """The objects in quarantine, as far as the store lists them already."""
    return frozenset(subject_of(name) for name, _ in repository.store.list(f"{Kind.BAD}/"))


def remove_object(repository: Repository, name: str) -> None:
    """Take the object `name`, which can be read again, out of quarantine."""
    repository.store.delete(note_name(name))


def find_damaged_backups(
    repository: Repository,
    roots: Iterable[Root],
    bad: Mapping[str, str],
    threads: int,
    cancel: threading.Event | None = None,
) -> dict[str, str]:
    """The ids of the backups that need one of the objects `bad`, and the damage of each.

    Args:
        repository: the one of the backups.
        roots: the backups to check.
        bad: the damage of each object, by name.
        threads: requests to the store at once.
        cancel: set to give up, with Cancelled.
    """
    holders: dict[Ref, list[Root]] = {}
    for root in roots:
        for ref in root.segments:
            if ref is not None:
                holders.setdefault(ref, []).append(root)
    lost_objects: dict[str, set[str]] = {}
    lock = threading.Lock()

    def check_segment(ref: Ref) -> None:
        lost = {name for name in _names(repository, ref, holders[ref]) if name in bad}
        with lock:
            for root in holders[ref] if lost else ():
                lost_objects.setdefault(root.backup_id, set()).update(lost)

    parallel.each(holders, check_segment, threads, cancel)
    return {backup_id: _describe(sorted(lost), bad) for backup_id, lost in lost_objects.items()}


def _names(repository: Repository, ref: Ref, holders: list[Root]) -> Iterator[str]:
    """The segment `ref` and, if it can be read, the objects that it names."""
    yield ref.name(Kind.SEGMENT)
    root = holders[0]
    chunks = root.geometry.chunks_in(root.segments.index(ref), root.size_bytes)
    try:
        yield from objects_of(*repository.of(root).load_segment(ref, len(chunks)))
    except (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat):
        return  # the verification has reported it


def _describe(lost: list[str], bad: Mapping[str, str]) -> str:
    more = f" And {len(lost) - _SHOWN} more objects." if len(lost) > _SHOWN else ""
    return " ".join(bad[name] for name in lost[:_SHOWN]) + more


def names_in(error: LunrError) -> list[str]:
    """The objects that an error of the format is about."""
    return str(error.fields["name"]).split(", ")
