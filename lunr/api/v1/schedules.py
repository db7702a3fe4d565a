"""Schedules: an account's, and those of volume types for admins."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Choice, Id, Integer, Schema, Text
from lunr.api.services.schedules.recurrence import PERIODS
from lunr.api.v1.schemas import PAGE

_WHEN: Schema = {"at": Text(16), "spread": Integer(0, 7 * 24 * 60), "name": Text()}
_EVERY = tuple(PERIODS)

LIST: Schema = {**PAGE, "name": Text(), "volume_id": Id()}
UPDATE: Schema = {"every": Choice(_EVERY), **_WHEN}
_CREATE: Schema = {"every": Choice(_EVERY, required=True), **_WHEN}
CREATE: Schema = {"volume_id": Id(required=True), **_CREATE}
FOR_TYPE: Schema = {"volume_type_name": Id(required=True), **_CREATE}


def index(call: Call) -> Reply:
    """List the account's schedules."""
    return Reply(200, call.services.schedules.list(call.query(call.account)))


def create(call: Call) -> Reply:
    """Give a volume a schedule."""
    volume_id = call.fields["volume_id"]
    return Reply(200, call.services.schedules.create(call.account, volume_id, call.fields))


def create_for_type(call: Call) -> Reply:
    """Give a volume type a schedule."""
    name = call.fields["volume_type_name"]
    return Reply(200, call.services.schedules.create_for_type(name, call.fields))


def show(call: Call) -> Reply:
    """Show a schedule; below admin any."""
    return Reply(200, call.services.schedules.get(call.path.get("account"), call.path["id"]))


def of_volume(call: Call) -> Reply:
    """Show the schedule that is good for a volume."""
    return Reply(200, call.services.schedules.of_volume(call.account, call.path["id"]))


def update(call: Call) -> Reply:
    """Change a schedule."""
    account = call.path.get("account")
    return Reply(200, call.services.schedules.update(account, call.path["id"], call.fields))


def delete(call: Call) -> Reply:
    """Delete a schedule."""
    call.services.schedules.delete(call.path.get("account"), call.path["id"])
    return Reply(204)
