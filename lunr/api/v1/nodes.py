"""Nodes, as an admin sees them."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Array, Boolean, Choice, Id, Integer, Schema
from lunr.api.v1.schemas import PAGE

LIST: Schema = {**PAGE, "status": Choice(("PENDING", "ACTIVE", "MAINTENANCE", "DOWN"))}
UPDATE: Schema = {
    "weight": Integer(0, 1_000_000),
    "group": Id(),
    "volume_types": Array(Id(), most=100),
    "status": Choice(("ACTIVE", "MAINTENANCE")),
}
CREATE: Schema = {**UPDATE, "id": Id(required=True)}
DELETE: Schema = {"force": Boolean()}


def index(request: Request) -> Response:
    """List nodes."""
    return Response(200, request.services.nodes.list(request.query(None)))


def create(request: Request) -> Response:
    """Make a node; its token is in this answer and nowhere else."""
    return Response(200, request.services.nodes.create(**request.fields))


def show(request: Request) -> Response:
    """Show a node."""
    return Response(200, request.services.nodes.get(request.path["id"]))


def update(request: Request) -> Response:
    """Change how a node is used."""
    return Response(200, request.services.nodes.update(request.path["id"], **request.fields))


def delete(request: Request) -> Response:
    """Forget a node; with `force` also what is on it."""
    request.services.nodes.delete(request.path["id"], request.fields.get("force", False))
    request.services.tokens.forget()
    return Response(204)
