"""Objects that can't be used any more, and the backups that need them.

Whoever finds such an object sets it aside: a note of its name in the store.
No save refers to it from then on, so the next backup of a volume that still has
the data stores it again. A note is a hint: one that a listing does not show yet
costs a save its use, and the next verify finds what that save refers to. Notes
are garbage as soon as no backup needs the object.
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
    """The name of the note that sets the object `name` aside."""
    return f"{Kind.BAD}/{name}"


def subject_of(name: str) -> str:
    """The object that the note `name` is about; what is no note is about itself."""
    return name.removeprefix(f"{Kind.BAD}/")


def set_aside(repository: Repository, name: str, reason: str) -> None:
    """Let no save refer to the object `name` any more."""
    note = {"format": VERSION, "reason": reason, "found": repository.clock()}
    repository.store.put(note_name(name), json.dumps(note).encode(), durable=True)


def names(repository: Repository) -> frozenset[str]:
    """The objects that are set aside, as far as the store lists them already."""
    return frozenset(subject_of(name) for name, _ in repository.store.list(f"{Kind.BAD}/"))


def forget(repository: Repository, name: str) -> None:
    """The object `name` is good again: a part of the store was only away."""
    repository.store.delete(note_name(name))


def needing(
    repository: Repository,
    roots: Iterable[Root],
    bad: Mapping[str, str],
    threads: int,
    cancel: threading.Event | None = None,
) -> dict[str, str]:
    """The ids of the backups that need one of the objects `bad`, and what each has lost.

    Args:
        repository: whose backups.
        roots: those to look at.
        bad: names, and what is wrong with each.
        threads: requests to the store at once.
        cancel: set to give up, with Cancelled.
    """
    holders: dict[Ref, list[Root]] = {}
    for root in roots:
        for ref in root.segments:
            if ref is not None:
                holders.setdefault(ref, []).append(root)
    found: dict[str, set[str]] = {}
    lock = threading.Lock()

    def look(ref: Ref) -> None:
        lost = {name for name in _names(repository, ref, holders[ref]) if name in bad}
        with lock:
            for root in holders[ref] if lost else ():
                found.setdefault(root.backup_id, set()).update(lost)

    parallel.each(holders, look, threads, cancel)
    return {backup_id: _tell(sorted(lost), bad) for backup_id, lost in found.items()}


def _names(repository: Repository, ref: Ref, holders: list[Root]) -> Iterator[str]:
    """The segment `ref` and, if it can be read, what it names."""
    yield ref.name(Kind.SEGMENT)
    root = holders[0]
    chunks = root.geometry.chunks_in(root.segments.index(ref), root.size_bytes)
    try:
        yield from objects_of(*repository.of(root).load_segment(ref, len(chunks)))
    except (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat):
        return  # whoever verified it has found that too


def _tell(lost: list[str], bad: Mapping[str, str]) -> str:
    more = f" And {len(lost) - _SHOWN} more objects." if len(lost) > _SHOWN else ""
    return " ".join(bad[name] for name in lost[:_SHOWN]) + more


def names_in(error: LunrError) -> list[str]:
    """The objects that an error of the format is about."""
    return str(error.fields["name"]).split(", ")
