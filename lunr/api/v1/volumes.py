"""Volumes."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import MAX_SIZE, Choice, Id, Integer, Schema, Text
from lunr.api.services.volumes.lazy_restore import MODES
from lunr.api.v1.schemas import NAMED, THINGS
from lunr.common import errors

#: How a volume from a backup is filled; at most so many MiB a second.
_FILL: Schema = {"fill": Choice(MODES), "fill_limit": Integer(0, 1 << 20)}
LIST: Schema = {**THINGS, "volume_type_name": Id(), "node_id": Id()}
CREATE: Schema = {
    **NAMED,
    **_FILL,
    "size": Integer(1, MAX_SIZE),
    "volume_type_name": Id(),
    "backup": Id(),
    "snapshot": Id(),
    "source_volume": Id(),
    "affinity": Text(4096),
    "force_node": Id(),
}
UPDATE: Schema = {**NAMED, **_FILL}
EXTEND: Schema = {"size": Integer(1, MAX_SIZE, required=True)}


def index(call: Call) -> Reply:
    """List the account's volumes."""
    return Reply(200, call.services.volumes.list(call.query(call.account)))


def create(call: Call) -> Reply:
    """Make a volume."""
    _only_admins_force(call)
    return Reply(202, call.services.volumes.create(call.account, call.fields)[0])


def put(call: Call) -> Reply:
    """Make a volume under the caller's id, once."""
    _only_admins_force(call)
    volume, made = call.services.volumes.create(call.account, call.fields, call.path["id"])
    return Reply(202 if made else 200, volume)


def show(call: Call) -> Reply:
    """Show a volume."""
    return Reply(200, call.services.volumes.get(call.account, call.path["id"]))


def update(call: Call) -> Reply:
    """Change name, metadata, or how it is filled."""
    return Reply(200, call.services.volumes.update(call.account, call.path["id"], call.fields))


def extend(call: Call) -> Reply:
    """Make a volume larger."""
    size = call.fields["size"]
    return Reply(202, call.services.volumes.extend(call.account, call.path["id"], size))


def delete(call: Call) -> Reply:
    """Delete a volume."""
    return Reply(202, call.services.volumes.delete(call.account, call.path["id"]))


def _only_admins_force(call: Call) -> None:
    if "force_node" in call.fields and call.who.role != "admin":
        raise errors.Forbidden(role="admin")
