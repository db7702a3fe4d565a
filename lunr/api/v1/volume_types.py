"""Volume types: shown to all, changed by admins."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import MAX_SIZE, Fields, Id, Integer, Schema
from lunr.api.v1.retention import RULES

UPDATE: Schema = {
    "min_size": Integer(1, MAX_SIZE),
    "max_size": Integer(1, MAX_SIZE),
    "read_iops": Integer(0, MAX_SIZE),
    "write_iops": Integer(0, MAX_SIZE),
    "retention": Fields(RULES),
}
CREATE: Schema = {**UPDATE, "name": Id(required=True)}


def index(call: Call) -> Reply:
    """List volume types."""
    return Reply(200, call.services.volume_types.list())


def create(call: Call) -> Reply:
    """Make a volume type."""
    return Reply(200, call.services.volume_types.create(**call.fields))


def show(call: Call) -> Reply:
    """Show a volume type."""
    return Reply(200, call.services.volume_types.get(call.path["name"]))


def update(call: Call) -> Reply:
    """Change a volume type's limits."""
    return Reply(200, call.services.volume_types.update(call.path["name"], **call.fields))


def delete(call: Call) -> Reply:
    """Delete a volume type."""
    call.services.volume_types.delete(call.path["name"])
    return Reply(204)
