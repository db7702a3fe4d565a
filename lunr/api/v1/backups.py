"""Backups: below their volume, and by themselves when that is gone."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Boolean, Id, Schema
from lunr.api.v1.schemas import NAMED, THINGS

LIST: Schema = {**THINGS, "volume_id": Id()}
UPDATE: Schema = {**NAMED, "protected": Boolean()}
CREATE: Schema = {**UPDATE, "full": Boolean(), "snapshot": Id()}


def index(request: Request) -> Response:
    """List the account's backups."""
    return Response(200, request.services.backups.list(request.query(request.account)))


def of_volume(request: Request) -> Response:
    """List a volume's backups; they may be all that is left of it."""
    query = request.query(request.account, volume_id=request.path["id"])
    page = request.services.backups.list(query)
    if not page["backups"]:
        request.services.volumes.get(request.account, request.path["id"])
    return Response(200, page)


def create(request: Request) -> Response:
    """Back a volume up."""
    backup, _ = request.services.backups.create(request.account, request.path["id"], request.fields)
    return Response(202, backup)


def put(request: Request) -> Response:
    """Back a volume up under the caller's id, once."""
    backup, made = request.services.backups.create(
        request.account, request.path["id"], request.fields, request.path["backup_id"]
    )
    return Response(202 if made else 200, backup)


def show(request: Request) -> Response:
    """Show a backup."""
    return Response(
        200,
        request.services.backups.get(
            request.account, request.path["backup_id"], request.path.get("id")
        ),
    )


def update(request: Request) -> Response:
    """Change name or metadata, or protect a backup."""
    return Response(
        200,
        request.services.backups.update(request.account, request.path["backup_id"], request.fields),
    )


def delete(request: Request) -> Response:
    """Delete a backup."""
    return Response(
        202,
        request.services.backups.delete(
            request.account, request.path["backup_id"], request.path.get("id")
        ),
    )


def restores(request: Request) -> Response:
    """List the volumes that are being restored from a backup."""
    return Response(
        200, request.services.backups.restores(request.account, request.path["backup_id"])
    )


def verify(request: Request) -> Response:
    """Have a backup read and checked."""
    return Response(
        202, request.services.backups.verify(request.account, request.path["backup_id"])
    )
