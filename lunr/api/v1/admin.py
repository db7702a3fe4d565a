"""Every account's things, for admins."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Id, Schema
from lunr.api.services.pagination import Query
from lunr.api.v1 import backups as own_backups
from lunr.api.v1 import jobs as own_jobs
from lunr.api.v1 import schedules as own_schedules
from lunr.api.v1 import snapshots as own_snapshots
from lunr.api.v1 import volumes as own_volumes
from lunr.api.v1.schemas import PAGE, THINGS

_ACCOUNT: Schema = {"account_id": Id()}
VOLUMES: Schema = {**own_volumes.LIST, **_ACCOUNT}
SNAPSHOTS: Schema = {**own_snapshots.LIST, **_ACCOUNT}
BACKUPS: Schema = {**own_backups.LIST, **_ACCOUNT}
EXPORTS: Schema = {**PAGE, **_ACCOUNT, "status": THINGS["status"]}
SCHEDULES: Schema = {**own_schedules.LIST, **_ACCOUNT, "volume_type_name": Id()}
JOBS: Schema = {**own_jobs.LIST, **_ACCOUNT}


def _query(call: Call) -> Query:
    return call.query(call.fields.get("account_id"))


def volumes(call: Call) -> Reply:
    """List volumes."""
    return Reply(200, call.services.volumes.list(_query(call)))


def snapshots(call: Call) -> Reply:
    """List snapshots."""
    return Reply(200, call.services.snapshots.list(_query(call)))


def backups(call: Call) -> Reply:
    """List backups, also those that lunr makes for itself."""
    return Reply(200, call.services.backups.list(_query(call), internal=True))


def exports(call: Call) -> Reply:
    """List exports, without their secrets."""
    return Reply(200, call.services.exports.list(_query(call)))


def schedules(call: Call) -> Reply:
    """List schedules, also those of volume types."""
    return Reply(200, call.services.schedules.list(_query(call)))


def jobs(call: Call) -> Reply:
    """List jobs."""
    return Reply(200, call.services.jobs.list(_query(call)))
