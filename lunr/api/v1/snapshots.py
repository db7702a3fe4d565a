"""Snapshots."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Id, Schema
from lunr.api.v1.schemas import THINGS

LIST: Schema = {**THINGS, "volume_id": Id()}


def index(request: Request) -> Response:
    """List the account's snapshots."""
    return Response(200, request.services.snapshots.list(request.query(request.account)))


def of_volume(request: Request) -> Response:
    """List a volume's snapshots."""
    request.services.volumes.get(request.account, request.path["id"])
    query = request.query(request.account, volume_id=request.path["id"])
    return Response(200, request.services.snapshots.list(query))


def create(request: Request) -> Response:
    """Make a snapshot of a volume."""
    return Response(
        202,
        request.services.snapshots.create(request.account, request.path["id"], **request.fields),
    )


def show(request: Request) -> Response:
    """Show a snapshot."""
    return Response(200, request.services.snapshots.get(request.account, request.path["id"]))


def delete(request: Request) -> Response:
    """Delete a snapshot."""
    return Response(202, request.services.snapshots.delete(request.account, request.path["id"]))
