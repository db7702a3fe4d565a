"""Backup groups: the backups of all disks of a machine at one instant.

The group's record is a backup itself: it has the group's id, the machine's name as its volume,
and a JSON object that names the other backups as its bytes. It is saved last. A group exists when
its record and all backups that it names exist. So groups are checked, encrypted, collected and
verified like all backups, without an addition to the storage format.
"""

from __future__ import annotations

import json
import logging
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from lunr.backup import errors as engine
from lunr.backup.read.plan import load_range
from lunr.backup.repository.repository import Repository
from lunr.backup.save.parent import UNUSABLE
from lunr.backup.save.save import Backup, save
from lunr.common import ids, strict_json
from lunr.live import errors
from lunr.live.qemu.hardware import Device, Hardware

logger = logging.getLogger(__name__)

T = TypeVar("T")

_VERSION = 1
#: How many dedup candidates a save gets.
MOST_LIKE = 32

_STAMP = r"\d{8}T\d{12}Z"
_GROUP = re.compile(rf"(?P<machine>.+)-{_STAMP}")
_MEMBER = re.compile(rf"(?P<group>(?P<machine>.+?)-(?P<stamp>{_STAMP}))-(?P<disk>.+)")


@dataclass(frozen=True)
class Member:
    """The backup of one disk.

    Attributes:
        disk: the disk's name in the machine.
        backup_id: the backup's.
        size_bytes: the disk's.
        way: "full", "incremental", or "compared": all was read, and only changes were stored.
        reason: why it was not incremental; "" if it was.
        changed_bytes: the bytes in the bitmap; None without a bitmap.
        bytes_read: by the save.
        bytes_stored: by the save.
        seconds: of the save.
        device: the disk's device; None in old records.
    """

    disk: str
    backup_id: str
    size_bytes: int
    way: str
    reason: str
    changed_bytes: int | None
    bytes_read: int
    bytes_stored: int
    seconds: float
    device: Device | None = None


@dataclass(frozen=True)
class Group:
    """The backups of a machine at one instant.

    Attributes:
        group_id: its id.
        machine: the machine's name.
        created_at: ISO 8601 in UTC.
        stall_seconds: how long the guest stood still.
        frozen: how many file systems the guest's agent had frozen; None: there was no freeze.
        members: the disks' backups.
        hardware: the machine's hardware; None in old records.
    """

    group_id: str
    machine: str
    created_at: str
    stall_seconds: float
    frozen: int | None
    members: tuple[Member, ...]
    hardware: Hardware | None = None

    def member(self, disk: str) -> Member | None:
        """The backup of `disk`, if it has one."""
        return next((member for member in self.members if member.disk == disk), None)


def new_id(machine: str, moment: datetime) -> str:
    """An id for a group of `machine` (an id too) that begins at `moment`.

    Raises:
        errors.CannotBackUp: the name is too long.
    """
    return _fit(f"{machine}-{moment.astimezone(UTC):%Y%m%dT%H%M%S%fZ}")


def backup_id(group_id: str, disk: str) -> str:
    """The id of the backup of `disk` (a name that is an id) in a group.

    Raises:
        errors.CannotBackUp: the names are too long.
    """
    return _fit(f"{group_id}-{disk}")


def volume_id(machine: str, disk: str) -> str:
    """The volume id of a disk's backups, without a service."""
    return _fit(f"{machine}-{disk}")


def _fit(name: str) -> str:
    if not ids.is_valid(name):
        raise errors.CannotBackUp(
            reason=f"{name!r} would be an id, and is too long: give a shorter name with --vm."
        )
    return name


class _Record:
    """A :class:`lunr.backup.save.block_source.Source` in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See :meth:`Source.data`."""
        yield start, end

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`Source.read`."""
        view = memoryview(buffer)[:length]
        view[:] = self._data[offset : offset + length]
        return view


def store(repository: Repository, group: Group) -> None:
    """Write the record of `group`: from now on it exists.

    Raises:
        engine errors of :func:`lunr.backup.save.save.save`.
    """
    raw = json.dumps({"format": _VERSION, **asdict(group)}, indent=1).encode()
    record = Backup(
        backup_id=group.group_id,
        volume_id=group.machine,
        created_at=group.created_at,
        consistency_group=group.group_id,
    )
    save(repository, _Record(raw), record, concurrency=1)


def load(repository: Repository, group_id: str) -> Group:
    """The group `group_id`, if it is complete.

    Raises:
        errors.GroupMissing: it does not exist, or one of its backups was deleted.
        engine.CorruptObject, engine.WrongKey and others: it can't be read.
    """
    group = _load(repository, group_id)
    for member in group.members:
        try:
            repository.load_root(member.backup_id)
        except engine.BackupMissing:
            raise errors.GroupMissing(id=group_id) from None
    return group


def _load(repository: Repository, group_id: str) -> Group:
    try:
        root = repository.load_root(group_id)
    except engine.BackupMissing:
        raise errors.GroupMissing(id=group_id) from None
    if root.consistency_group != root.backup_id:
        raise errors.GroupMissing(id=group_id)  # some other backup
    repository = repository.of(root)
    raw = bytearray()
    for chunks, ref in repository.segments_of(root):
        if ref is None:
            break
        for chunk, entry in zip(chunks, repository.load_segment(ref, len(chunks)), strict=True):
            length = root.geometry.chunk_length(chunk, root.size_bytes)
            blocks = range(-(-length // root.geometry.block))
            raw += load_range(repository, entry, length, root.geometry, blocks)
    return _decode(bytes(raw), group_id)


def _decode(raw: bytes, group_id: str) -> Group:
    try:
        record = strict_json.load_object(raw)
        version = record.pop("format")
        if version != _VERSION:
            raise engine.UnsupportedFormat(name=group_id, reason=f"group version {version}.")
        members = tuple(
            Member(**{**member, "device": _build(Device, member.get("device"))})
            for member in record.pop("members")
        )
        hardware = _build(Hardware, record.pop("hardware", None))
        return Group(**record, members=members, hardware=hardware)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise engine.CorruptObject(
            name=group_id, reason="it is not the JSON of a group."
        ) from error


def _build(kind: type[T], values: dict[str, Any] | None) -> T | None:
    return None if values is None else kind(**values)


def delete(repository: Repository, group_id: str) -> None:
    """Delete a group or its remains, the record first: so it never seems complete.

    Raises:
        errors.GroupMissing: nothing of it exists.
    """
    try:
        members = [member.backup_id for member in _load(repository, group_id).members]
    except errors.GroupMissing:
        members = unfinished(repository).get(group_id, [])
        if not members:
            raise
    repository.delete_root(group_id)
    for member in members:
        repository.delete_root(member)


def ids_of(repository: Repository, machine: str | None = None) -> list[str]:
    """The ids of groups that the store lists, complete or not; of `machine`, or of all."""
    matches = map(_GROUP.fullmatch, repository.backup_ids())
    return [match[0] for match in matches if match and machine in (None, match["machine"])]


def listed(repository: Repository, machine: str | None = None) -> list[Group]:
    """The complete groups that the store lists, the newest first; of `machine`, or of all.

    Groups that can't be read are logged.
    """
    existing = set(repository.backup_ids())
    groups = []
    for group_id in ids_of(repository, machine):
        try:
            group = _load(repository, group_id)
        except errors.GroupMissing:
            continue
        except UNUSABLE as error:
            logger.warning("Group %s can't be read: %s", group_id, error)
            continue
        if all(member.backup_id in existing for member in group.members):
            groups.append(group)
    return sorted(groups, key=lambda group: group.created_at, reverse=True)


def newest_of_others(repository: Repository, machine: str) -> list[str]:
    """The newest backup of each disk of the other machines, the newest first, at most `MOST_LIKE`.

    Machines are often made from one image: they are dedup candidates for each other.
    """
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    for listed_id in repository.backup_ids():
        match = _MEMBER.fullmatch(listed_id)
        if match and match["machine"] != machine:
            disk = match["machine"], match["disk"]
            newest[disk] = max(newest.get(disk, ("", "")), (match["stamp"], listed_id))
    return [listed_id for _, listed_id in sorted(newest.values(), reverse=True)][:MOST_LIKE]


def unfinished(repository: Repository, machine: str | None = None) -> dict[str, list[str]]:
    """Backups of disks by group, for groups whose record the store does not list.

    The group's backup runs, or was killed, or the store's listing is late: a caller that deletes
    them must know which.
    """
    existing = set(repository.backup_ids())
    members: dict[str, list[str]] = {}
    for listed_id in sorted(existing):
        match = _MEMBER.fullmatch(listed_id)
        if match and match["group"] not in existing and machine in (None, match["machine"]):
            members.setdefault(match["group"], []).append(listed_id)
    return members


def discard(repository: Repository, group_id: str, disks: Iterable[str]) -> None:
    """Delete the remains of a failed group."""
    repository.delete_root(group_id)
    for disk in disks:
        repository.delete_root(backup_id(group_id, disk))


def restore_path(folder: Path, member: Member) -> Path:
    """The file that a disk is restored to."""
    return folder / f"{ids.check(member.disk, 'disk')}.raw"
