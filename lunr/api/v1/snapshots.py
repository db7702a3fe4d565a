"""Snapshots."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Id, Schema
from lunr.api.v1.schemas import THINGS

LIST: Schema = {**THINGS, "volume_id": Id()}


def index(call: Call) -> Reply:
    """List the account's snapshots."""
    return Reply(200, call.services.snapshots.list(call.query(call.account)))


def of_volume(call: Call) -> Reply:
    """List a volume's snapshots."""
    call.services.volumes.get(call.account, call.path["id"])
    query = call.query(call.account, volume_id=call.path["id"])
    return Reply(200, call.services.snapshots.list(query))


def create(call: Call) -> Reply:
    """Make a snapshot of a volume."""
    return Reply(202, call.services.snapshots.create(call.account, call.path["id"], **call.fields))


def show(call: Call) -> Reply:
    """Show a snapshot."""
    return Reply(200, call.services.snapshots.get(call.account, call.path["id"]))


def delete(call: Call) -> Reply:
    """Delete a snapshot."""
    return Reply(202, call.services.snapshots.delete(call.account, call.path["id"]))
