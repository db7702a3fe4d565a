"""What lunr's logical volumes and disks are: what their tags mean, and what LVM says of them.

What a logical volume is to lunr is written in its tags, by the command that
makes it, so that an operator who reads ``lvs -o+tags`` understands::

    lunr.role=ROLE       what it is (:class:`Role`)
    lunr.id=ID           the record's id: the volume's, the snapshot's or the backup's
    lunr.volume=ID       the volume it belongs to (of a volume: itself)

What has no such tags is not lunr's and is left alone. Output of LVM is asked for as
JSON (lvmreport(7)), sizes in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lunr.common import ids
from lunr.storage.pools.base import Purpose, Snapshot

ROLE_TAG = "lunr.role="


class Role(StrEnum):
    """What a logical volume is, by its tag ``lunr.role``."""

    VOLUME = "volume"
    #: A user's snapshot.
    SNAPSHOT = "snapshot"
    #: The snapshot that a running backup reads.
    BACKUP = "backup"
    #: The snapshot that the volume's next backup is compared with.
    BASELINE = "reference"
    #: What of a volume is there that is being restored: dm-clone's metadata.
    CLONE_METADATA = "filling"
    #: Half made: nothing yet, and garbage if nobody is at it.
    BUILDING = "building"
    #: To be overwritten and then removed.
    WIPING = "wiping"
    #: The same, but a COW area: only as far as it was used.
    WIPING_COW = "wiping-cow"


#: Which role a snapshot of each purpose has.
ROLES = {
    Purpose.USER: Role.SNAPSHOT,
    Purpose.BACKUP: Role.BACKUP,
    Purpose.BASELINE: Role.BASELINE,
}


@dataclass(frozen=True)
class LogicalVolume:
    """A line of ``lvs``.

    Attributes:
        name: its name in the group.
        size: bytes it takes: of a dm-snapshot those of its COW area, of a thin one those promised.
        origin: the name of what it is a snapshot of, or "".
        pool: the name of its thin pool, or "".
        segtype: "linear", "thin", "thin-pool", …
        tags: all of them.
        made_at: when it was made, in seconds since 1970.
        active: whether its device is there.
        suspended: whether its device lets nothing through.
        open: whether somebody has its device open.
    """

    name: str
    size: int
    origin: str
    pool: str
    segtype: str
    tags: frozenset[str]
    made_at: float
    active: bool
    suspended: bool
    open: bool

    @property
    def role(self) -> Role | None:
        """What it is to lunr; None: not lunr's."""
        return _role(self.tags)

    @property
    def id(self) -> str:
        """The id of the record it is for, or ""."""
        return _tag(self.tags, "id")

    @property
    def volume_id(self) -> str:
        """The id of the volume it belongs to, or ""."""
        return _tag(self.tags, "volume")

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot that it holds, if it holds one."""
        for purpose, role in ROLES.items():
            if self.role is role:
                return Snapshot(self.volume_id, self.id, purpose)
        return None


@dataclass(frozen=True)
class PhysicalVolume:
    """A disk of the group, sizes in bytes.

    Attributes:
        volumes: how much of it volumes have, those included that are made or deleted just now.
    """

    name: str
    size: int
    free: int
    volumes: int
    tags: frozenset[str]
    allocatable: bool
    missing: bool


def tags_for(role: Role, id_: str, volume_id: str) -> list[str]:
    """The words that make ``lvcreate`` tag what it makes."""
    tags = (f"{ROLE_TAG}{role}", f"lunr.id={ids.check(id_)}", f"lunr.volume={ids.check(volume_id)}")
    return [word for tag in tags for word in ("--addtag", tag)]


#: What `parse_volume` reads.
VOLUME_FIELDS = (
    *("lv_name", "lv_size", "origin", "pool_lv", "segtype"),
    *("lv_tags", "lv_time", "lv_active", "lv_suspended", "lv_device_open"),
)
#: What `parse_disks` reads.
DISK_FIELDS = (
    *("pv_name", "pv_size", "pv_free", "pv_tags", "pv_allocatable", "pv_missing"),
    *("pvseg_size", "lv_tags"),
)


def parse_report(text: str) -> list[dict[str, str]]:
    """The lines of a report in JSON, whatever they are of.

    Raises:
        ValueError: it is none.
    """
    report: Mapping[str, Any] = json.loads(text)
    return [row for part in report["report"] for rows in part.values() for row in rows]


def parse_volume(row: Mapping[str, str]) -> LogicalVolume:
    """A line of ``lvs`` with `VOLUME_FIELDS`."""
    return LogicalVolume(
        name=row["lv_name"],
        size=int(row["lv_size"]),
        origin=row["origin"],
        pool=row["pool_lv"],
        segtype=row["segtype"],
        tags=_tags(row["lv_tags"]),
        made_at=float(row["lv_time"]),
        active=row["lv_active"] == "active",
        suspended=row["lv_suspended"] == "suspended",
        open=row["lv_device_open"] == "open",
    )


def parse_disks(rows: Iterable[Mapping[str, str]], extent: int) -> list[PhysicalVolume]:
    """The lines of ``pvs`` with `DISK_FIELDS`: one for each run of extents, of so many bytes."""
    runs: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        runs.setdefault(row["pv_name"], []).append(row)
    return [
        PhysicalVolume(
            name=name,
            size=int(of[0]["pv_size"]),
            free=int(of[0]["pv_free"]),
            volumes=sum(int(run["pvseg_size"]) for run in of if _is_volume(run)) * extent,
            tags=_tags(of[0]["pv_tags"]),
            allocatable=of[0]["pv_allocatable"] != "",
            missing=of[0]["pv_missing"] != "",
        )
        for name, of in runs.items()
    ]


def _is_volume(row: Mapping[str, str]) -> bool:
    tags = _tags(row["lv_tags"])
    made_or_deleted = _role(tags) in (Role.VOLUME, Role.BUILDING, Role.WIPING)
    return made_or_deleted and _tag(tags, "id") == _tag(tags, "volume")


def _tags(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


def _role(tags: Iterable[str]) -> Role | None:
    value = _tag(tags, "role")
    return Role(value) if value in set(Role) else None


def _tag(tags: Iterable[str], key: str) -> str:
    start = f"lunr.{key}="
    # A tag of a hand that wrote what is no id is not believed.
    values = (tag.removeprefix(start) for tag in tags if tag.startswith(start))
    return next((value for value in values if ids.is_valid(value)), "")
