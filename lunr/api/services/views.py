"""Records as the API shows them (docs/api.md), from a model or a row alike."""

from __future__ import annotations

from typing import Any

from lunr.common.times import iso

View = dict[str, Any]


def volume(row: Any, export_status: str | None) -> View:
    """A volume."""
    return {
        **_head(row),
        "volume_type_name": row.volume_type_name or "",
        "node_id": row.node_id,
        "backup": row.backup_id,
        "snapshot": row.snapshot_id,
        "source_volume": row.source_volume_id,
        "export_status": export_status,
        "usable": row.status == "ACTIVE" or (row.status == "RESTORING" and row.usable),
        "fill": row.fill,
        "fill_limit": row.fill_limit,
        "fill_rate": row.fill_rate,
        "fill_remaining": row.fill_remaining,
        "fill_job_id": row.fill_job_id,
        **_tail(row),
    }


def snapshot(row: Any) -> View:
    """A snapshot."""
    return {
        **_head(row),
        "volume_id": row.volume_id,
        "node_id": row.node_id,
        "backup": row.base_id,
        **_tail(row),
    }


def backup(row: Any) -> View:
    """A backup."""
    return {
        **_head(row),
        "volume_id": row.volume_id,
        "snapshot": row.snapshot_id,
        "internal": row.internal,
        "protected": row.protected,
        "schedule": row.schedule_id,
        "group": row.group_id,
        "parent_id": row.parent_id,
        "bytes_read": row.bytes_read,
        "bytes_stored": row.bytes_stored,
        "objects_stored": row.objects_stored,
        "verified_at": iso(row.verified_at),
        "damaged": row.damaged,
        **_tail(row),
    }


def group(row: Any, backups: list[View]) -> View:
    """A backup group."""
    return {
        "id": row.id,
        "account_id": row.account_id,
        "machine": row.machine,
        "status": row.status,
        "reason": row.reason,
        "progress": row.progress,
        "metadata": row.meta,
        "backups": backups,
        **_tail(row),
    }


def _head(row: Any) -> View:
    """What volumes, snapshots and backups begin with."""
    return {
        "id": row.id,
        "account_id": row.account_id,
        "name": row.name,
        "size": row.size,
        "status": row.status,
        "reason": row.reason,
        "progress": row.progress,
        "metadata": row.meta,
    }


def _tail(row: Any) -> View:
    """What they end with."""
    return {
        "job_id": row.job_id,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "deleted_at": iso(row.deleted_at),
    }


def job(row: Any) -> View:
    """A job, without its lease and its payload."""
    return {
        "id": row.id,
        "account_id": row.account_id,
        "kind": row.kind,
        "status": row.status,
        "progress": row.progress,
        "reason": row.reason,
        "code": row.code,
        "node_id": row.node_id,
        "volume_id": row.volume_id,
        "subject_id": row.subject_id,
        "attempt": row.attempt,
        "result": row.result,
        "created_at": iso(row.created_at),
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
    }


def node(row: Any, allocated_bytes: int) -> View:
    """A node; `allocated_bytes` are promised to its volumes."""
    return {
        "id": row.id,
        "status": row.status,
        "hostname": row.hostname,
        "portal": row.portal,
        "group": row.group,
        "weight": row.weight,
        "volume_types": row.volume_types,
        "pool": row.pool,
        "target": row.target,
        "capacity_bytes": row.capacity_bytes,
        "free_bytes": row.free_bytes,
        "allocated_bytes": allocated_bytes,
        "full": row.full,
        "limits_io": row.limits_io,
        "version": row.version,
        "last_seen": iso(row.last_seen),
        "created_at": iso(row.created_at),
    }


def volume_type(row: Any) -> View:
    """A volume type."""
    return {
        "name": row.name,
        "min_size": row.min_size,
        "max_size": row.max_size,
        "read_iops": row.read_iops,
        "write_iops": row.write_iops,
        "retention": row.retention or {},
        "created_at": iso(row.created_at),
    }


def schedule(row: Any) -> View:
    """A schedule, and how far its volumes are with it (lunr.api.services.schedules.service)."""
    return {
        "id": row.id,
        "account_id": row.account_id,
        "volume_id": row.volume_id,
        "volume_type_name": row.volume_type_name,
        "name": row.name,
        "every": row.every,
        "at": row.at,
        "spread": row.spread,
        "volumes": row.volumes,
        "last_run": iso(row.last_run),
        "next_run": iso(row.next_run),
        "last_backup": row.last_backup,
        "last_error": row.last_error,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
    }


def account(row: Any) -> View:
    """An account; a quota of None is the configured default."""
    return {
        "id": row.id,
        "quotas": {
            "volumes": row.quota_volumes,
            "gigabytes": row.quota_gigabytes,
            "snapshots": row.quota_snapshots,
            "backups": row.quota_backups,
        },
        "created_at": iso(row.created_at),
        "deleted_at": iso(row.deleted_at),
    }


def token(row: Any) -> View:
    """A token, without its secret: only its hash is known."""
    return {
        "id": row.id,
        "role": row.role,
        "account_id": row.account_id,
        "node_id": row.node_id,
        "created_at": iso(row.created_at),
    }
