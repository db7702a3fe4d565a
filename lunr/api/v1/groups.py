"""Consistency groups: the backups of a machine's disks at one instant."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import (
    MAX_BYTES,
    MAX_SIZE,
    Array,
    Choice,
    DateTime,
    Fields,
    Id,
    Integer,
    Object,
    Schema,
)
from lunr.api.services.backups.groups import GroupReport, MemberReport
from lunr.api.v1.schemas import PAGE, THINGS
from lunr.common.units import GIB

_COUNT = Integer(0, MAX_BYTES)
_BACKUP: Schema = {
    "id": Id(required=True),
    "disk": Id(required=True),
    "volume_id": Id(required=True),
    "size_bytes": Integer(0, MAX_SIZE * GIB, required=True),
    "parent_id": Id(),
    "bytes_read": _COUNT,
    "bytes_stored": _COUNT,
    "objects_stored": _COUNT,
    "metadata": Object(),
}
LIST: Schema = {**PAGE, "status": THINGS["status"], "machine": Id()}
PUT: Schema = {
    "machine": Id(required=True),
    "created_at": DateTime(required=True),
    "status": Choice(("SAVING", "AVAILABLE"), required=True),
    "progress": Integer(0, 100),
    "metadata": Object(),
    "backups": Array(Fields(_BACKUP), 256, required=True),
}


def index(request: Request) -> Response:
    """List the account's groups."""
    return Response(200, request.services.groups.list(request.query(request.account)))


def show(request: Request) -> Response:
    """Show a group."""
    return Response(200, request.services.groups.get(request.account, request.path["id"]))


def put(request: Request) -> Response:
    """Announce a group that is being saved, or say that it is complete."""
    fields = dict(request.fields)
    found = tuple(MemberReport(**backup) for backup in fields.pop("backups"))
    group = request.services.groups.put(
        request.account, request.path["id"], GroupReport(**fields, backups=found)
    )
    return Response(200 if group["status"] == "AVAILABLE" else 202, group)


def delete(request: Request) -> Response:
    """Delete a group with its backups."""
    return Response(202, request.services.groups.delete(request.account, request.path["id"]))
