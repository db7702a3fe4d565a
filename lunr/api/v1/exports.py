"""Exports: one a volume."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Address, Boolean, Initiator, Schema

CREATE: Schema = {"initiator": Initiator(), "ip": Address()}
DELETE: Schema = {"force": Boolean()}


def put(call: Call) -> Reply:
    """Export a volume to an initiator."""
    export, made = call.services.exports.create(
        call.account, call.path["id"], call.fields.get("initiator"), call.fields.get("ip")
    )
    return Reply(202 if made else 200, export)


def show(call: Call) -> Reply:
    """Show a volume's export."""
    return Reply(200, call.services.exports.get(call.account, call.path["id"]))


def delete(call: Call) -> Reply:
    """Detach a volume."""
    force = call.fields.get("force", False)
    return Reply(202, call.services.exports.delete(call.account, call.path["id"], force))
