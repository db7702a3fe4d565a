"""Every account's things, for admins."""

from __future__ import annotations

from lunr.api.request import Request, Response
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


def _query(request: Request) -> Query:
    return request.query(request.fields.get("account_id"))


def volumes(request: Request) -> Response:
    """List volumes."""
    return Response(200, request.services.volumes.list(_query(request)))


def snapshots(request: Request) -> Response:
    """List snapshots."""
    return Response(200, request.services.snapshots.list(_query(request)))


def backups(request: Request) -> Response:
    """List backups, also those that lunr makes for itself."""
    return Response(200, request.services.backups.list(_query(request), internal=True))


def exports(request: Request) -> Response:
    """List exports, without their secrets."""
    return Response(200, request.services.exports.list(_query(request)))


def schedules(request: Request) -> Response:
    """List schedules, also those of volume types."""
    return Response(200, request.services.schedules.list(_query(request)))


def jobs(request: Request) -> Response:
    """List jobs."""
    return Response(200, request.services.jobs.list(_query(request)))
