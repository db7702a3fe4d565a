"""Jobs, as callers see them."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Id, Schema, Text
from lunr.api.v1.schemas import PAGE

LIST: Schema = {**PAGE, "status": Text(16), "kind": Text(32), "volume_id": Id()}


def index(call: Call) -> Reply:
    """List the account's jobs."""
    return Reply(200, call.services.jobs.list(call.query(call.account)))


def show(call: Call) -> Reply:
    """Show a job."""
    return Reply(200, call.services.jobs.get(call.account, call.path["id"]))


def cancel(call: Call) -> Reply:
    """Cancel a job: at once, or when its node hears of it."""
    if call.services.jobs.cancel(call.account, call.path["id"]):
        return Reply(204)
    return Reply(202, call.services.jobs.get(call.account, call.path["id"]))
