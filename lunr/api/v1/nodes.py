"""Nodes, as an admin sees them."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Boolean, Choice, Id, Integer, Items, Schema
from lunr.api.v1.schemas import PAGE

LIST: Schema = {**PAGE, "status": Choice(("PENDING", "ACTIVE", "MAINTENANCE", "DOWN"))}
UPDATE: Schema = {
    "weight": Integer(0, 1_000_000),
    "group": Id(),
    "volume_types": Items(Id(), most=100),
    "status": Choice(("ACTIVE", "MAINTENANCE")),
}
CREATE: Schema = {**UPDATE, "id": Id(required=True)}
DELETE: Schema = {"force": Boolean()}


def index(call: Call) -> Reply:
    """List nodes."""
    return Reply(200, call.services.nodes.list(call.query(None)))


def create(call: Call) -> Reply:
    """Make a node; its token is in this answer and nowhere else."""
    return Reply(200, call.services.nodes.create(**call.fields))


def show(call: Call) -> Reply:
    """Show a node."""
    return Reply(200, call.services.nodes.get(call.path["id"]))


def update(call: Call) -> Reply:
    """Change how a node is used."""
    return Reply(200, call.services.nodes.update(call.path["id"], **call.fields))


def delete(call: Call) -> Reply:
    """Forget a node; with `force` also what is on it."""
    call.services.nodes.delete(call.path["id"], call.fields.get("force", False))
    call.services.tokens.forget()
    return Reply(204)
