"""Volumes."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import MAX_SIZE, Choice, Id, Integer, Schema, String
from lunr.api.services.volumes.job_types import FILL_MODES
from lunr.api.v1.schemas import NAMED, THINGS
from lunr.common import errors

#: How a volume from a backup is filled; at most so many MiB a second.
_FILL: Schema = {"fill": Choice(FILL_MODES), "fill_limit": Integer(0, 1 << 20)}
LIST: Schema = {**THINGS, "volume_type_name": Id(), "node_id": Id()}
CREATE: Schema = {
    **NAMED,
    **_FILL,
    "size": Integer(1, MAX_SIZE),
    "volume_type_name": Id(),
    "backup": Id(),
    "snapshot": Id(),
    "source_volume": Id(),
    "affinity": String(4096),
    "force_node": Id(),
}
UPDATE: Schema = {**NAMED, **_FILL}
EXTEND: Schema = {"size": Integer(1, MAX_SIZE, required=True)}


def index(request: Request) -> Response:
    """List the account's volumes."""
    return Response(200, request.services.volumes.list(request.query(request.account)))


def create(request: Request) -> Response:
    """Make a volume."""
    _only_admins_force(request)
    return Response(202, request.services.volumes.create(request.account, request.fields)[0])


def put(request: Request) -> Response:
    """Make a volume under the caller's id, once."""
    _only_admins_force(request)
    volume, made = request.services.volumes.create(
        request.account, request.fields, request.path["id"]
    )
    return Response(202 if made else 200, volume)


def show(request: Request) -> Response:
    """Show a volume."""
    return Response(200, request.services.volumes.get(request.account, request.path["id"]))


def update(request: Request) -> Response:
    """Change name, metadata, or how it is filled."""
    return Response(
        200, request.services.volumes.update(request.account, request.path["id"], request.fields)
    )


def extend(request: Request) -> Response:
    """Make a volume larger."""
    size = request.fields["size"]
    return Response(202, request.services.volumes.extend(request.account, request.path["id"], size))


def delete(request: Request) -> Response:
    """Delete a volume."""
    return Response(202, request.services.volumes.delete(request.account, request.path["id"]))


def _only_admins_force(request: Request) -> None:
    if "force_node" in request.fields and request.who.role != "admin":
        raise errors.Forbidden(role="admin")
