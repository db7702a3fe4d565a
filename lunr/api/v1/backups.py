"""Backups: below their volume, and by themselves when that is gone."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Boolean, Id, Schema
from lunr.api.v1.schemas import NAMED, THINGS

LIST: Schema = {**THINGS, "volume_id": Id()}
UPDATE: Schema = {**NAMED, "protected": Boolean()}
CREATE: Schema = {**UPDATE, "full": Boolean(), "snapshot": Id()}


def index(call: Call) -> Reply:
    """List the account's backups."""
    return Reply(200, call.services.backups.list(call.query(call.account)))


def of_volume(call: Call) -> Reply:
    """List a volume's backups; they may be all that is left of it."""
    query = call.query(call.account, volume_id=call.path["id"])
    page = call.services.backups.list(query)
    if not page["backups"]:
        call.services.volumes.get(call.account, call.path["id"])
    return Reply(200, page)


def create(call: Call) -> Reply:
    """Back a volume up."""
    backup, _ = call.services.backups.create(call.account, call.path["id"], call.fields)
    return Reply(202, backup)


def put(call: Call) -> Reply:
    """Back a volume up under the caller's id, once."""
    backup, made = call.services.backups.create(
        call.account, call.path["id"], call.fields, call.path["backup_id"]
    )
    return Reply(202 if made else 200, backup)


def show(call: Call) -> Reply:
    """Show a backup."""
    return Reply(
        200,
        call.services.backups.get(call.account, call.path["backup_id"], call.path.get("id")),
    )


def update(call: Call) -> Reply:
    """Change name or metadata, or protect a backup."""
    return Reply(
        200, call.services.backups.update(call.account, call.path["backup_id"], call.fields)
    )


def delete(call: Call) -> Reply:
    """Delete a backup."""
    return Reply(
        202,
        call.services.backups.delete(call.account, call.path["backup_id"], call.path.get("id")),
    )


def restores(call: Call) -> Reply:
    """List the volumes that are being restored from a backup."""
    return Reply(200, call.services.backups.restores(call.account, call.path["backup_id"]))


def verify(call: Call) -> Reply:
    """Have a backup read and checked."""
    return Reply(202, call.services.backups.verify(call.account, call.path["backup_id"]))
