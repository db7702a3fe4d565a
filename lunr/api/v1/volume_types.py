"""Volume types: shown to all, changed by admins."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import MAX_SIZE, Fields, Id, Integer, Schema
from lunr.api.v1.retention import RULES

UPDATE: Schema = {
    "min_size": Integer(1, MAX_SIZE),
    "max_size": Integer(1, MAX_SIZE),
    "read_iops": Integer(0, MAX_SIZE),
    "write_iops": Integer(0, MAX_SIZE),
    "retention": Fields(RULES),
}
CREATE: Schema = {**UPDATE, "name": Id(required=True)}


def index(request: Request) -> Response:
    """List volume types."""
    return Response(200, request.services.volume_types.list())


def create(request: Request) -> Response:
    """Make a volume type."""
    return Response(200, request.services.volume_types.create(**request.fields))


def show(request: Request) -> Response:
    """Show a volume type."""
    return Response(200, request.services.volume_types.get(request.path["name"]))


def update(request: Request) -> Response:
    """Change a volume type's limits."""
    return Response(
        200, request.services.volume_types.update(request.path["name"], **request.fields)
    )


def delete(request: Request) -> Response:
    """Delete a volume type."""
    request.services.volume_types.delete(request.path["name"])
    return Response(204)
