"""Accounts and their tokens (admin)."""

from __future__ import annotations

from lunr.api.request import Request, Response
from lunr.api.schema import MAX_SIZE, Choice, Fields, Id, Integer, Schema
from lunr.api.v1.schemas import PAGE

_QUOTA = Integer(0, MAX_SIZE)
_QUOTAS = Fields(
    dict.fromkeys(("volumes", "gigabytes", "snapshots", "backups"), _QUOTA), nulls=True
)
LIST: Schema = PAGE
CREATE: Schema = {"id": Id(), "quotas": _QUOTAS}
UPDATE: Schema = {"quotas": _QUOTAS}
CREATE_TOKEN: Schema = {"role": Choice(("member", "admin"))}


def index(request: Request) -> Response:
    """List accounts."""
    return Response(200, request.services.accounts.list(request.query(None)))


def create(request: Request) -> Response:
    """Make an account."""
    return Response(200, request.services.accounts.create(**request.fields))


def show(request: Request) -> Response:
    """Show an account."""
    return Response(200, request.services.accounts.get(request.path["id"]))


def update(request: Request) -> Response:
    """Change an account's quotas."""
    return Response(
        200, request.services.accounts.update(request.path["id"], request.fields.get("quotas", {}))
    )


def delete(request: Request) -> Response:
    """Delete an account."""
    request.services.accounts.delete(request.path["id"])
    request.services.tokens.forget()
    return Response(204)


def tokens(request: Request) -> Response:
    """List an account's tokens."""
    return Response(200, request.services.tokens.list(request.path["id"]))


def create_token(request: Request) -> Response:
    """Make a token; its secret is in this answer and nowhere else."""
    return Response(200, request.services.tokens.create(request.path["id"], **request.fields))


def revoke_token(request: Request) -> Response:
    """Revoke a token."""
    request.services.tokens.revoke(request.path["id"], request.path["token_id"])
    return Response(204)


def collect(request: Request) -> Response:
    """Collect an account's garbage now."""
    return Response(202, request.services.collect.request(request.path["id"]))
