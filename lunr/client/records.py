"""The records of the API's answers, as frozen dataclasses.

Times are strings as the API gives them (ISO 8601, UTC, ending in ``Z``), so
they sort; ``size`` is GiB, what ends in ``_bytes`` or begins with ``bytes_``
is bytes. A ``status`` is a plain string: a newer server may know more of them
than :mod:`lunr.common.states`. Secrets are left out of a record's repr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

from lunr.client.errors import BadAnswer


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all records have in common."""

    #: The fields that a list for people shows. Their names say how (`cli/output.py`).
    columns: ClassVar[tuple[str, ...]] = ()

    #: Fields of the answer that this version of the client doesn't know.
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: Mapping[str, Any], url: str = "the server") -> Self:
        """The record that one JSON object of an answer describes.

        Raises:
            BadAnswer: a field that such a record can't be without is missing.
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        needed = {f.name for f in fields(cls) if _is_needed(f)}
        if missing := sorted(needed - data.keys()):
            raise BadAnswer(url=url, what=f"a {cls.__name__} without {', '.join(missing)}")
        extra = {name: value for name, value in data.items() if name not in known}
        return cls(**{n: v for n, v in data.items() if n in known}, extra=extra)

    def as_dict(self) -> dict[str, Any]:
        """All fields of the answer, also the unknown ones, as for JSON. Includes secrets."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**known, **self.extra}


def _is_needed(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


@dataclass(frozen=True, kw_only=True)
class JobRecord(Record):
    """A record that jobs work on."""

    id: str
    status: str
    reason: str | None = None
    job_id: str | None = None
    account_id: str = ""
    created_at: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Volume(JobRecord):
    """A volume."""

    columns = ("id", "name", "size", "status", "export_status", "created_at")

    name: str = ""
    size: int = 0
    progress: int = 0
    volume_type_name: str = ""
    node_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    backup: str | None = None
    snapshot: str | None = None
    source_volume: str | None = None
    export_status: str | None = None
    #: Whether it can be exported and written: also while it is filled from its backup.
    usable: bool = False
    #: How it is filled from its backup: eager, lazy or never; None: it is not.
    fill: str | None = None
    #: The most MiB a second that are fetched for that; 0: no limit.
    fill_limit: int = 0
    #: Bytes a second, and the seconds that are left (None: unknown).
    fill_rate: int = 0
    fill_remaining: int | None = None
    #: The job that fills it; None: no job fills it now.
    fill_job_id: str | None = None
    deleted_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot(JobRecord):
    """A snapshot of a volume."""

    columns = ("id", "name", "volume_id", "size", "status", "created_at")

    volume_id: str = ""
    name: str = ""
    size: int = 0
    progress: int = 0
    node_id: str | None = None
    #: The backing backup: it has the blocks that the snapshot lacks; None: it lacks none.
    backup: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    deleted_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backup(JobRecord):
    """A backup of a volume; complete by itself, whatever its parent."""

    columns = ("id", "name", "volume_id", "size", "status", "bytes_stored", "created_at")

    volume_id: str = ""
    #: The snapshot that was saved; None: the volume as it was.
    snapshot: str | None = None
    #: A hidden backup, for a cross-node copy; only admins see it.
    internal: bool = False
    #: Neither deleted nor pruned until this is taken back.
    protected: bool = False
    #: The id of the schedule that made it; None: it was made by hand.
    schedule: str | None = None
    #: The group it belongs to: the backups of a machine's disks at one instant.
    group: str | None = None
    name: str = ""
    size: int = 0
    progress: int = 0
    parent_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_stored: int = 0
    objects_stored: int = 0
    verified_at: str | None = None
    #: The damage that a verification or a read found; None: none.
    damaged: str | None = None
    deleted_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Group(JobRecord):
    """The backups of a running machine's disks at one instant."""

    columns = ("id", "machine", "status", "progress", "created_at", "reason")

    machine: str = ""
    progress: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: Records of backups, as :attr:`members` has them.
    backups: Sequence[Mapping[str, Any]] = ()
    #: For the client that saves it: pending deletions, and whether it is to stop.
    condemned: Sequence[str] = ()
    cancel: bool = False
    deleted_at: str | None = None

    @property
    def members(self) -> list[Backup]:
        """The backups of its disks; their names are the disks'."""
        return [Backup.parse(backup) for backup in self.backups]


@dataclass(frozen=True, kw_only=True)
class Export(JobRecord):
    """A volume's export, with all that its initiator needs."""

    columns = ("account_id", "volume_id", "status", "initiator", "ip", "target_portal", "sessions")

    volume_id: str
    initiator: str | None = None
    ip: str | None = None
    target_iqn: str = ""
    target_portal: str = ""
    target_lun: int = 1
    auth_method: str | None = None
    auth_username: str | None = None
    auth_password: str | None = field(default=None, repr=False)
    #: Who is logged in now: ``{"initiator": IQN, "ip": address}`` each.
    sessions: Sequence[Mapping[str, str]] = ()

    @classmethod
    def parse(cls, data: Mapping[str, Any], url: str = "the server") -> Self:
        """As :meth:`Record.parse`; an export's id is its volume's, which has only one."""
        return super().parse({**data, "id": data.get("volume_id")}, url)


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """A piece of work for a node."""

    columns = ("id", "kind", "subject_id", "status", "progress", "node_id", "created_at", "reason")

    id: str
    kind: str
    status: str
    account_id: str = ""
    progress: int = 0
    reason: str | None = None
    code: str | None = None
    node_id: str | None = None
    volume_id: str | None = None
    subject_id: str | None = None
    attempt: int = 0
    result: Mapping[str, Any] | None = None
    created_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Account(Record):
    """An account and its quotas (``volumes``, ``gigabytes``, ``snapshots``, ``backups``)."""

    columns = ("id", "quotas", "created_at")

    id: str
    quotas: Mapping[str, int | None] = field(default_factory=dict)
    created_at: str | None = None
    deleted_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Token(Record):
    """A token; `token` is the secret itself, in the answer to its creation only."""

    columns = ("id", "role", "created_at")

    id: str
    role: str = "member"
    account_id: str | None = None
    token: str | None = field(default=None, repr=False)
    created_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Node(Record):
    """A storage node; `token` is its secret, in the answer to its creation only."""

    columns = (
        "id",
        "status",
        "portal",
        "group",
        "weight",
        "volume_types",
        "capacity_bytes",
        "free_bytes",
        "allocated_bytes",
        "full",
        "last_seen",
    )

    id: str
    status: str = ""
    hostname: str = ""
    portal: str = ""
    group: str = ""
    weight: int = 100
    volume_types: Sequence[str] = ()
    pool: str = ""
    target: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0
    allocated_bytes: int = 0
    #: Why it takes no new volumes whatever is promised; "" if it does.
    full: str = ""
    #: Whether it can limit volumes to the IOPS of their types.
    limits_io: bool = False
    version: str = ""
    last_seen: str | None = None
    token: str | None = field(default=None, repr=False)
    created_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeType(Record):
    """What volumes of a type may be like: sizes in GiB, IOPS of 0 have no limit."""

    columns = ("name", "min_size", "max_size", "read_iops", "write_iops")

    name: str
    min_size: int = 1
    max_size: int = 0
    read_iops: int = 0
    write_iops: int = 0
    #: The rules for volumes that have none of their own.
    retention: Mapping[str, int] = field(default_factory=dict)
    created_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule(Record):
    """When a volume, or each volume of a type, is backed up. Times are UTC, `spread` is minutes."""

    columns = (
        "id",
        "name",
        "volume_id",
        "every",
        "at",
        "spread",
        "last_run",
        "next_run",
        "last_error",
    )

    id: str
    every: str
    at: str = ""
    spread: int = 0
    name: str = ""
    #: None: a volume type's.
    account_id: str | None = None
    volume_id: str | None = None
    volume_type_name: str | None = None
    #: How many volumes it applies to; what follows is about all of them.
    volumes: int = 0
    last_run: str | None = None
    next_run: str | None = None
    last_backup: str | None = None
    #: Why the last run gave no backup.
    last_error: str | None = None
    created_at: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """Whether the rules keep a backup, and which rules do."""

    columns = ("id", "name", "created_at", "status", "keep", "reasons")

    id: str
    keep: bool
    reasons: Sequence[str] = ()
    name: str = ""
    status: str = ""
    created_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Retention(Record):
    """The rules of a volume, and what they decide of its backups."""

    volume_id: str
    #: ``keep_last``, ``keep_hourly``, … -> a number; empty: all backups are kept.
    rules: Mapping[str, int] = field(default_factory=dict)
    #: ``volume``, ``volume_type``, ``request``; None: there are none.
    rules_of: str | None = None
    #: Newest first, as :attr:`verdicts` has them.
    backups: Sequence[Mapping[str, Any]] = ()

    @property
    def verdicts(self) -> list[Verdict]:
        """What becomes of each backup, newest first."""
        return [Verdict.parse(backup) for backup in self.backups]
