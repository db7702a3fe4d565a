"""The records, as SQLAlchemy models.

A model sets a record's first status; after that only
:func:`lunr.db.transitions.move` changes it. Times are naive and in UTC, sizes
are GiB unless the name says bytes. The record of a deleted object is kept for a while (soft
delete): its id can't be used again meanwhile.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    false,
    inspect,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lunr.common import states, times

#: Ids that callers choose have at most 64 characters (lunr.common.ids).
ID = String(64)
STATUS = String(16)
# SQLite numbers rows by itself only in a column of its type INTEGER.
SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The base of all models. It names constraints, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, str]]: JSON,
    }


class Account(Base):
    """A tenant and its quotas (None: the configured default)."""

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    quota_volumes: Mapped[int | None]
    quota_gigabytes: Mapped[int | None]
    quota_snapshots: Mapped[int | None]
    quota_backups: Mapped[int | None]
    #: When the last garbage collection was requested.
    collected_at: Mapped[datetime | None]
    #: When the last verification of a share of its objects was requested, and how many were.
    verify_asked_at: Mapped[datetime | None]
    shares_verified: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(default=times.now)
    deleted_at: Mapped[datetime | None]


class Token(Base):
    """A caller's token; only the SHA-256 of the secret is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    #: Its owner: an account (role member or admin) or a node (role node).
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    node_id: Mapped[str | None] = mapped_column(ForeignKey("nodes.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=times.now)


class Node(Base):
    """A storage node: the operator's settings, and the report of its last heartbeat."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    status: Mapped[str] = mapped_column(STATUS, default=states.Node.PENDING.value)
    hostname: Mapped[str] = mapped_column(String(255), default="")
    portal: Mapped[str] = mapped_column(String(255), default="")
    group: Mapped[str] = mapped_column("group_name", String(64), default="")
    weight: Mapped[int] = mapped_column(default=100)
    volume_types: Mapped[list[str]] = mapped_column(default=lambda: ["default"])
    pool: Mapped[str] = mapped_column(String(64), default="")
    target: Mapped[str] = mapped_column(String(64), default="")
    capacity_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    free_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Why it takes no new volumes although it has room for them; "" if it takes them.
    full: Mapped[str] = mapped_column(String(255), default="", server_default=text("''"))
    #: Whether it can limit the IOPS of volumes.
    limits_io: Mapped[bool] = mapped_column(default=False, server_default=false())
    version: Mapped[str] = mapped_column(String(64), default="")
    #: Counts the node's starts: a claim that began before the last start gets no jobs.
    epoch: Mapped[int] = mapped_column(default=0)
    last_seen: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=times.now)


class VolumeType(Base):
    """The limits of volumes of a type. IOPS of 0: no limit."""

    __tablename__ = "volume_types"

    name: Mapped[str] = mapped_column(ID, primary_key=True)
    min_size: Mapped[int] = mapped_column(default=1)
    max_size: Mapped[int] = mapped_column(default=65536)
    read_iops: Mapped[int] = mapped_column(default=0)
    write_iops: Mapped[int] = mapped_column(default=0)
    #: Which backups of its volumes are kept (lunr.api.services.retention.rules); None: all.
    retention: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=times.now)


class _Resource:
    """The common columns of volumes, snapshots, backups and backup groups."""

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    #: The first state of each of them.
    status: Mapped[str] = mapped_column(STATUS, default="NEW")
    reason: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[int] = mapped_column(default=0)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    job_id: Mapped[str | None] = mapped_column(ID)
    created_at: Mapped[datetime] = mapped_column(default=times.now)
    updated_at: Mapped[datetime] = mapped_column(default=times.now, onupdate=times.now)
    deleted_at: Mapped[datetime | None]


class VolumeKind(StrEnum):
    """Where a volume is: on a node, or outside of lunr, which knows only its backups."""

    LOCAL = "local"
    EXTERNAL = "external"


class Volume(_Resource, Base):
    """A volume."""

    __tablename__ = "volumes"

    name: Mapped[str] = mapped_column(String(255), default="")
    size: Mapped[int]
    #: GiB promised on the node and counted in the quota: more than `size` during an extend.
    reserved: Mapped[int]
    kind: Mapped[str] = mapped_column(
        String(8), default=VolumeKind.LOCAL.value, server_default=VolumeKind.LOCAL.value
    )
    #: None: it is external; so is the node's.
    volume_type_name: Mapped[str | None] = mapped_column(ID)
    node_id: Mapped[str | None] = mapped_column(ID)
    #: The parameters it was created with: the same PUT again is the same volume.
    request: Mapped[dict[str, Any]] = mapped_column(default=dict)
    backup_id: Mapped[str | None] = mapped_column(ID, index=True)
    snapshot_id: Mapped[str | None] = mapped_column(ID, index=True)
    source_volume_id: Mapped[str | None] = mapped_column(ID, index=True)
    #: The hidden backup of a cross-node copy; None: the source is on the same node, or none.
    transfer_id: Mapped[str | None] = mapped_column(ID, index=True)
    #: The backing backup; needed until the volume is complete.
    base_id: Mapped[str | None] = mapped_column(ID, index=True)
    #: Whether it can be used while it is RESTORING (lazy restore).
    usable: Mapped[bool] = mapped_column(default=False, server_default=false())
    #: The mode of its fill while it is RESTORING: eager, lazy or never; None: no lazy restore.
    fill: Mapped[str | None] = mapped_column(String(8))
    #: The most MiB a second that the fill fetches; 0: no limit.
    fill_limit: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    #: The job of its fill; None: there is none now.
    fill_job_id: Mapped[str | None] = mapped_column(ID)
    #: The fill's bytes a second and remaining seconds, by the last report of its node.
    fill_rate: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    fill_remaining: Mapped[int | None] = mapped_column(BigInteger)
    #: Which of its backups are kept; None: by the rules of its type.
    retention: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    __table_args__ = (
        Index("ix_volumes_page", "account_id", "created_at", "id"),
        Index("ix_volumes_page_all", "created_at", "id"),
        # Both sums (room on a node, quota of an account) are read from an index alone.
        Index("ix_volumes_room", "node_id", "status", "reserved"),
        Index("ix_volumes_quota", "account_id", "status", "reserved"),
    )


class Snapshot(_Resource, Base):
    """A snapshot of a volume, on the volume's node."""

    __tablename__ = "snapshots"

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id"), index=True)
    name: Mapped[str] = mapped_column(String(255), default="")
    size: Mapped[int]
    node_id: Mapped[str] = mapped_column(ID)
    #: The backing backup, if the volume was being restored; it has the blocks that are not local.
    base_id: Mapped[str | None] = mapped_column(ID, index=True)

    __table_args__ = (
        Index("ix_snapshots_page", "account_id", "created_at", "id"),
        Index("ix_snapshots_page_all", "created_at", "id"),
        Index("ix_snapshots_node", "node_id", "status"),
    )


class BackupGroup(_Resource, Base):
    """The backups of a machine's disks at one instant: all of them, or none."""

    __tablename__ = "backup_groups"

    #: The name of the machine, as its client gives it.
    machine: Mapped[str] = mapped_column(ID)

    __table_args__ = (Index("ix_backup_groups_page", "account_id", "created_at", "id"),)


class Backup(_Resource, Base):
    """A backup; it outlives its volume, so `volume_id` points at no row."""

    __tablename__ = "backups"

    volume_id: Mapped[str] = mapped_column(ID)
    #: The snapshot that is saved; None: the volume at the begin of the save.
    snapshot_id: Mapped[str | None] = mapped_column(ID, index=True)
    #: Whether it is a hidden backup: lunr makes and deletes it for a cross-node copy.
    internal: Mapped[bool] = mapped_column(default=False, server_default=false())
    #: Whether it is protected from deletion and pruning.
    protected: Mapped[bool] = mapped_column(default=False, server_default=false())
    #: The schedule that requested it, which may be deleted; None: a caller requested it.
    schedule_id: Mapped[str | None] = mapped_column(ID)
    group_id: Mapped[str | None] = mapped_column(ForeignKey("backup_groups.id"), index=True)
    name: Mapped[str] = mapped_column(String(255), default="")
    size: Mapped[int]
    #: Whether the caller requested a save without a parent.
    full: Mapped[bool] = mapped_column(default=False)
    parent_id: Mapped[str | None] = mapped_column(ID, index=True)
    #: The backing backup of the saved volume or snapshot; only a running save needs it.
    base_id: Mapped[str | None] = mapped_column(ID, index=True)
    request: Mapped[dict[str, Any]] = mapped_column(default=dict)
    bytes_read: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_stored: Mapped[int] = mapped_column(BigInteger, default=0)
    objects_stored: Mapped[int] = mapped_column(BigInteger, default=0)
    verified_at: Mapped[datetime | None]
    #: Its damage by the last verification or restore; None: no known damage.
    damaged: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_backups_page", "account_id", "created_at", "id"),
        Index("ix_backups_page_all", "created_at", "id"),
        # With the account: SQLite takes the index that most of a query's columns are in.
        Index("ix_backups_volume", "volume_id", "account_id", "status", "created_at"),
        Index("ix_backups_quota", "account_id", "status"),
        Index("ix_backups_internal", "internal", "status"),
        Index("ix_backups_changed", "status", "updated_at"),
    )


#: A record of these has a root of its id in the store.
STORED = (Backup, BackupGroup)


class Schedule(Base):
    """When a volume, or (without `volume_id`) each volume of a type, is backed up."""

    __tablename__ = "schedules"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    #: The volume's account; None: the schedule of a type.
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"))
    volume_id: Mapped[str | None] = mapped_column(
        ForeignKey("volumes.id", ondelete="CASCADE"), unique=True
    )
    volume_type_name: Mapped[str | None] = mapped_column(
        ForeignKey("volume_types.name", ondelete="CASCADE"), unique=True
    )
    name: Mapped[str] = mapped_column(String(255), default="")
    #: See lunr.api.services.schedules.recurrence.
    every: Mapped[str] = mapped_column(String(8))
    at: Mapped[str] = mapped_column(String(16))
    spread: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=times.now)
    updated_at: Mapped[datetime] = mapped_column(default=times.now, onupdate=times.now)

    __table_args__ = (
        Index("ix_schedules_page", "account_id", "created_at", "id"),
        Index("ix_schedules_page_all", "created_at", "id"),
    )


class ScheduleRun(Base):
    """The state of a volume's schedule."""

    __tablename__ = "schedule_runs"

    volume_id: Mapped[str] = mapped_column(
        ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True
    )
    #: The schedule that `next_run` was computed from; None: compute it again.
    schedule_id: Mapped[str | None] = mapped_column(
        ForeignKey("schedules.id", ondelete="SET NULL"), index=True
    )
    #: In the past: a run is due; several missed runs are one. None: never (`every` is none).
    next_run: Mapped[datetime | None] = mapped_column(index=True)
    #: The next attempt of a due run that could not begin.
    not_before: Mapped[datetime | None]
    last_run: Mapped[datetime | None]
    last_backup_id: Mapped[str | None] = mapped_column(ID)
    #: Why the last run made no backup.
    last_error: Mapped[str | None] = mapped_column(Text)


class Export(Base):
    """The export of a volume; one row a volume, reused for its next export."""

    __tablename__ = "exports"

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id"), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    node_id: Mapped[str] = mapped_column(ID)
    status: Mapped[str] = mapped_column(STATUS, default=states.Export.ATTACHING.value)
    reason: Mapped[str | None] = mapped_column(Text)
    initiator: Mapped[str | None] = mapped_column(String(255))
    ip: Mapped[str | None] = mapped_column(String(64))
    target_iqn: Mapped[str] = mapped_column(String(255))
    auth_username: Mapped[str | None] = mapped_column(String(64))
    #: The CHAP secret, encrypted (lunr.api.secret_box).
    auth_secret: Mapped[str | None] = mapped_column(String(255))
    sessions: Mapped[list[dict[str, str]]] = mapped_column(default=list)
    job_id: Mapped[str | None] = mapped_column(ID)
    created_at: Mapped[datetime] = mapped_column(default=times.now)
    updated_at: Mapped[datetime] = mapped_column(default=times.now, onupdate=times.now)
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_exports_page", "account_id", "created_at", "volume_id"),
        Index("ix_exports_page_all", "created_at", "volume_id"),
        Index("ix_exports_node", "node_id", "status"),
    )


class Job(Base):
    """A unit of work of a node.

    Jobs with the same lock key run one at a time, oldest first; see
    :mod:`lunr.api.jobs.job_type` for the keys.
    """

    __tablename__ = "jobs"

    #: Order of creation.
    seq: Mapped[int] = mapped_column(SEQUENCE, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ID, unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    #: The name of its type (lunr.api.jobs.job_type).
    kind: Mapped[str] = mapped_column(String(32))
    lock_key: Mapped[str] = mapped_column("lane", String(96))
    status: Mapped[str] = mapped_column(STATUS, default=states.Job.QUEUED.value)
    #: The node that must run it, or runs it; None: any node.
    node_id: Mapped[str | None] = mapped_column(ID)
    volume_id: Mapped[str | None] = mapped_column(ID, index=True)
    subject_id: Mapped[str] = mapped_column(ID)
    #: Parts of the payload that the records don't have.
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    cancel: Mapped[bool] = mapped_column(default=False)
    progress: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str | None] = mapped_column(Text)
    code: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    lease: Mapped[str | None] = mapped_column(ID)
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=times.now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_jobs_page", "account_id", "seq"),
        Index("ix_jobs_queue", "node_id", "status", "seq"),
        Index("ix_jobs_lane", "lane", "status", "seq"),
        Index("ix_jobs_lease", "status", "lease_until"),
        Index("ix_jobs_subject", "subject_id", "status"),
        # The database itself refuses a second running job with the same lock key.
        Index(
            "uq_jobs_running",
            "lane",
            unique=True,
            sqlite_where=text("status = 'RUNNING'"),
            postgresql_where=text("status = 'RUNNING'"),
        ),
    )


class JobAfter(Base):
    """`job_id` may begin only when the job `after_id` has ended."""

    __tablename__ = "job_after"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    after_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Collection(Base):
    """A list of an account's objects pending deletion, which is not swept yet."""

    __tablename__ = "collections"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=times.now)


def columns(model: type[Base]) -> list[Any]:
    """All columns of `model` to select, under the names of its attributes.

    A row of them can be read like an instance, at a fraction of its cost.
    """
    return [
        getattr(model, attribute.key).label(attribute.key)
        for attribute in inspect(model).column_attrs
    ]
