"""Pending deletions: lists of names that a sweep will delete and no writer may refer to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import zstandard

from lunr.backup import errors
from lunr.backup.format.names import VERSION, Kind, condemned_name, is_name
from lunr.backup.repository import quarantine
from lunr.backup.repository.repository import Repository
from lunr.common import ids, strict_json

#: The most names of one list, which collector and writers hold in memory. The next mark lists
#: the rest.
MOST = 250_000
#: The largest list, decompressed; larger ones are refused before memory is allocated.
MAX_SIZE = 1 << 28


@dataclass(frozen=True)
class PendingDeletion:
    """One list.

    Attributes:
        created: seconds since the epoch.
        objects: size in bytes of each object, by name.
        saves: ids of the backups that were being saved then.
        swept: whether it was swept; `objects` are then those that a backup needed after all.
    """

    created: float
    objects: dict[str, int]
    saves: tuple[str, ...]
    swept: bool = False


def store(repository: Repository, collection: str, listed_objects: PendingDeletion) -> None:
    """Write the list of `collection`."""
    record = {
        "format": VERSION,
        "created": listed_objects.created,
        "objects": listed_objects.objects,
        "saves": listed_objects.saves,
        "swept": listed_objects.swept,
    }
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    raw = compressor.compress(json.dumps(record).encode())
    repository.store.put(condemned_name(collection), raw, durable=True)


def load(repository: Repository, collection: str) -> PendingDeletion | None:
    """The list of `collection`, or None when it was swept.

    Raises:
        errors.CorruptObject, errors.UnsupportedFormat: it can't be understood.
    """
    name = condemned_name(ids.check(collection, "collection"))
    try:
        raw = bytes(repository.store.get(name))
    except errors.ObjectMissing:
        return None
    try:
        if zstandard.frame_content_size(raw) > MAX_SIZE:
            raise errors.CorruptObject(name=name, reason="it claims to be too large.")
        document = zstandard.ZstdDecompressor().decompress(raw)
        record = strict_json.load_object(document, MAX_SIZE)
        if record["format"] != VERSION:
            raise errors.UnsupportedFormat(name=name, reason="a list of another version.")
        if not all(map(is_name, record["objects"])):
            raise errors.CorruptObject(name=name, reason="it lists a name that is no object's.")
        _check(record)
        return PendingDeletion(
            record["created"], record["objects"], tuple(record["saves"]), record["swept"]
        )
    except (zstandard.ZstdError, ValueError, TypeError, KeyError) as error:
        raise errors.CorruptObject(name=name, reason="it is not a list of names.") from error


def _check(record: Mapping[str, Any]) -> None:
    """See that the fields of a list have their types.

    Raises:
        ValueError: one has not.
    """
    if not (
        strict_json.is_number(record["created"])
        and isinstance(record["objects"], dict)
        and all(type(size) is int and size >= 0 for size in record["objects"].values())
        and isinstance(record["saves"], list)
        and all(map(ids.is_valid, record["saves"]))
        and isinstance(record["swept"], bool)
    ):
        raise ValueError("a field is of another type")


def listed(repository: Repository) -> list[str]:
    """The collections that the store lists."""
    names = (name.partition("/")[2] for name, _ in repository.store.list(f"{Kind.CONDEMNED}/"))
    return [name for name in names if ids.is_valid(name)]


def load_names(
    repository: Repository, collections: Iterable[str]
) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names that a writer must not refer to, and the collections that list them.

    The collections are `collections` and those that the store lists. Objects in quarantine are
    added to the names.
    """
    names: set[str] = set(quarantine.names(repository))
    known = []
    for collection in dict.fromkeys([*collections, *listed(repository)]):
        listed_objects = load(repository, collection)
        if listed_objects is not None:
            names.update(listed_objects.objects)
            known.append(collection)
    return frozenset(names), tuple(known)
