"""Exports: one a volume."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Address, Boolean, Initiator, Schema

CREATE: Schema = {"initiator": Initiator(), "ip": Address()}
DELETE: Schema = {"force": Boolean()}


def put(request: Request) -> Response:
    """Export a volume to an initiator."""
    export, made = request.services.exports.create(
        request.account,
        request.path["id"],
        request.fields.get("initiator"),
        request.fields.get("ip"),
    )
    return Response(202 if made else 200, export)


def show(request: Request) -> Response:
    """Show a volume's export."""
    return Response(200, request.services.exports.get(request.account, request.path["id"]))


def delete(request: Request) -> Response:
    """Detach a volume."""
    force = request.fields.get("force", False)
    return Response(
        202, request.services.exports.delete(request.account, request.path["id"], force)
    )
