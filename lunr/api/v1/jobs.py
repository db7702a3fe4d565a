"""Jobs, as callers see them."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Id, Schema, String
from lunr.api.v1.schemas import PAGE

LIST: Schema = {**PAGE, "status": String(16), "kind": String(32), "volume_id": Id()}


def index(request: Request) -> Response:
    """List the account's jobs."""
    return Response(200, request.services.jobs.list(request.query(request.account)))


def show(request: Request) -> Response:
    """Show a job."""
    return Response(200, request.services.jobs.get(request.account, request.path["id"]))


def cancel(request: Request) -> Response:
    """Cancel a job: at once, or when its node hears of it."""
    if request.services.jobs.cancel(request.account, request.path["id"]):
        return Response(204)
    return Response(202, request.services.jobs.get(request.account, request.path["id"]))
