"""Schedules: an account's, and those of volume types for admins."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Choice, Id, Integer, Schema, String
from lunr.api.services.schedules.recurrence import PERIODS
from lunr.api.v1.schemas import PAGE

_WHEN: Schema = {"at": String(16), "spread": Integer(0, 7 * 24 * 60), "name": String()}
_EVERY = tuple(PERIODS)

LIST: Schema = {**PAGE, "name": String(), "volume_id": Id()}
UPDATE: Schema = {"every": Choice(_EVERY), **_WHEN}
_CREATE: Schema = {"every": Choice(_EVERY, required=True), **_WHEN}
CREATE: Schema = {"volume_id": Id(required=True), **_CREATE}
FOR_TYPE: Schema = {"volume_type_name": Id(required=True), **_CREATE}


def index(request: Request) -> Response:
    """List the account's schedules."""
    return Response(200, request.services.schedules.list(request.query(request.account)))


def create(request: Request) -> Response:
    """Give a volume a schedule."""
    volume_id = request.fields["volume_id"]
    return Response(
        200, request.services.schedules.create(request.account, volume_id, request.fields)
    )


def create_for_type(request: Request) -> Response:
    """Give a volume type a schedule."""
    name = request.fields["volume_type_name"]
    return Response(200, request.services.schedules.create_for_type(name, request.fields))


def show(request: Request) -> Response:
    """Show a schedule; below admin any."""
    return Response(
        200, request.services.schedules.get(request.path.get("account"), request.path["id"])
    )


def of_volume(request: Request) -> Response:
    """Show the schedule that is good for a volume."""
    return Response(200, request.services.schedules.of_volume(request.account, request.path["id"]))


def update(request: Request) -> Response:
    """Change a schedule."""
    account = request.path.get("account")
    return Response(
        200, request.services.schedules.update(account, request.path["id"], request.fields)
    )


def delete(request: Request) -> Response:
    """Delete a schedule."""
    request.services.schedules.delete(request.path.get("account"), request.path["id"])
    return Response(204)
