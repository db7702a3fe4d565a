"""Roots: one backup, as JSON with a keyed digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from blake3 import blake3

from lunr.backup import errors
from lunr.backup.format.names import VERSION, Geometry, Ref, parse_short
from lunr.backup.keys.derive import Keys
from lunr.common import ids, strict_json

#: The largest root that is read, in bytes: that of a volume of some PiB.
LONGEST = 64 << 20


@dataclass(frozen=True)
class Statistics:
    """The statistics of a save. Sizes in bytes, time in seconds."""

    bytes_read: int = 0
    bytes_stored: int = 0
    objects_stored: int = 0
    chunks: int = 0
    zero_chunks: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Root:
    """One backup: complete by itself, whatever objects it shares with others.

    Attributes:
        backup_id: its id, also the last part of its name.
        volume_id: the volume's id.
        parent_id: the backup it was compared with, or None.
        size_bytes: the volume's.
        created_at: ISO 8601 in UTC, as given by the caller.
        geometry: the sizes of its chunks, blocks and segments.
        segments: one for every ``segment_chunks`` chunks; None: all zeros.
        key_id: the id of the keys it was written with.
        consistency_group: backups taken at the same instant share it; or None.
        statistics: of the save.
        internal: whether it is a hidden backup, which the service deletes by itself.
    """

    backup_id: str
    volume_id: str
    parent_id: str | None
    size_bytes: int
    created_at: str
    geometry: Geometry
    segments: tuple[Ref | None, ...]
    key_id: str
    consistency_group: str | None = None
    statistics: Statistics = field(default_factory=Statistics)
    internal: bool = False


def encode(root: Root, keys: Keys) -> bytes:
    """The object that holds `root`."""
    record = {
        "format": VERSION,
        "backup_id": root.backup_id,
        "volume_id": root.volume_id,
        "parent_id": root.parent_id,
        "size_bytes": root.size_bytes,
        "created_at": root.created_at,
        "block_size": root.geometry.block,
        "chunk_size": root.geometry.chunk,
        "segment_chunks": root.geometry.segment_chunks,
        "segments": [ref and ref.short() for ref in root.segments],
        "key_id": root.key_id,
        "consistency_group": root.consistency_group,
        "statistics": asdict(root.statistics),
    }
    if root.internal:
        record["internal"] = True
    return json.dumps({**record, "digest": _digest(record, keys)}, indent=1).encode()


def _digest(record: dict[str, Any], keys: Keys) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(canonical.encode(), key=keys.root).hexdigest()


def key_id(raw: bytes, name: str) -> str:
    """The id of the keys that the root in `raw` names, unchecked.

    Raises:
        errors.CorruptObject: it names none.
    """
    try:
        named = strict_json.load_object(raw, LONGEST)["key_id"]
    except (ValueError, KeyError):
        named = None
    if not ids.is_valid(named):
        raise errors.CorruptObject(name=name, reason="it does not name its key.")
    return str(named)


def decode(raw: bytes, backup_id: str, name: str, *keyring: Keys) -> Root:
    """The root in `raw`, written with one of the keys in `keyring`.

    Raises:
        errors.CorruptObject: it was changed, or is another backup's.
        errors.UnsupportedFormat: another version.
        errors.WrongKey: it was written with other keys.
    """
    try:
        record = strict_json.load_object(raw, LONGEST)
        version = record["format"]
    except (ValueError, KeyError) as error:
        raise errors.CorruptObject(name=name, reason="it is not the JSON of a root.") from error
    if version != VERSION:
        raise errors.UnsupportedFormat(name=name, reason=f"format version {version}.")
    needed = key_id(raw, name)
    keys = next((keys for keys in keyring if keys.id == needed), None)
    if keys is None:
        given = ", ".join(keys.id for keys in keyring)
        raise errors.WrongKey(name=name, needed=needed, given=given)
    if record.pop("digest", None) != _digest(record, keys):
        raise errors.CorruptObject(name=name, reason="its digest does not match.")
    if record["backup_id"] != backup_id:
        raise errors.CorruptObject(name=name, reason=f"it belongs to {record['backup_id']}.")
    return Root(
        backup_id=backup_id,
        volume_id=record["volume_id"],
        parent_id=record["parent_id"],
        size_bytes=record["size_bytes"],
        created_at=record["created_at"],
        geometry=Geometry(record["block_size"], record["chunk_size"], record["segment_chunks"]),
        segments=tuple(text and parse_short(text) for text in record["segments"]),
        key_id=record["key_id"],
        consistency_group=record["consistency_group"],
        statistics=Statistics(**record["statistics"]),
        internal=record.get("internal", False),
    )
