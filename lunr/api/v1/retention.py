"""Which backups of a volume are kept."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import Boolean, Integer, Schema
from lunr.api.services.retention.rules import PERIODS

#: 0 and nothing are the same: no rule.
RULES: Schema = {rule: Integer(0, 10000) for rule in PERIODS}
PRUNE: Schema = {**RULES, "dry_run": Boolean(), "all": Boolean()}


def show(request: Request) -> Response:
    """Show the rules of a volume, and what they keep."""
    return Response(200, request.services.retention.get(request.account, request.path["id"]))


def put(request: Request) -> Response:
    """Give a volume rules of its own."""
    return Response(
        200, request.services.retention.set(request.account, request.path["id"], request.fields)
    )


def delete(request: Request) -> Response:
    """Take a volume's own rules away: those of its type are good for it again."""
    return Response(200, request.services.retention.set(request.account, request.path["id"], None))


def prune(request: Request) -> Response:
    """Delete what the rules don't keep, or only say what that is."""
    rules = {rule: request.fields[rule] for rule in RULES if rule in request.fields}
    dry_run = request.fields.get("dry_run", False)
    told = request.services.retention.prune(
        request.account,
        request.path["id"],
        rules or None,
        by_hand=request.fields.get("all", False),
        dry_run=dry_run,
    )
    return Response(200 if dry_run else 202, told)
