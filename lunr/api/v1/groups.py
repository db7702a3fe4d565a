"""Consistency groups: the backups of a machine's disks at one instant."""

from __future__ import annotations

from dataclasses import replace

from lunr.api.request import Call, Reply
from lunr.api.schema import (
    MAX_BYTES,
    MAX_SIZE,
    Choice,
    Fields,
    Id,
    Integer,
    Items,
    Mapped,
    Moment,
    Schema,
)
from lunr.api.services.backups.groups import Told, ToldBackup
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
    "metadata": Mapped(),
}
LIST: Schema = {**PAGE, "status": THINGS["status"], "machine": Id()}
PUT: Schema = {
    "machine": Id(required=True),
    "created_at": Moment(required=True),
    "status": Choice(("SAVING", "AVAILABLE"), required=True),
    "progress": Integer(0, 100),
    "metadata": Mapped(),
    "backups": Items(Fields(_BACKUP), 256, required=True),
}


def index(call: Call) -> Reply:
    """List the account's groups."""
    query = call.query(call.account)
    filters = dict(query.filters)
    if "machine" in filters:
        filters["volume_id"] = filters.pop("machine")
    return Reply(200, call.services.groups.list(replace(query, filters=filters)))


def show(call: Call) -> Reply:
    """Show a group."""
    return Reply(200, call.services.groups.get(call.account, call.path["id"]))


def put(call: Call) -> Reply:
    """Announce a group that is being saved, or say that it is complete."""
    fields = dict(call.fields)
    found = tuple(ToldBackup(**backup) for backup in fields.pop("backups"))
    group = call.services.groups.put(call.account, call.path["id"], Told(**fields, backups=found))
    return Reply(200 if group["status"] == "AVAILABLE" else 202, group)


def delete(call: Call) -> Reply:
    """Delete a group with its backups."""
    return Reply(202, call.services.groups.delete(call.account, call.path["id"]))
