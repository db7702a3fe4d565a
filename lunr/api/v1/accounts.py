"""Accounts and their tokens (admin)."""

from __future__ import annotations

from lunr.api.request import Call, Reply
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


def index(call: Call) -> Reply:
    """List accounts."""
    return Reply(200, call.services.accounts.list(call.query(None)))


def create(call: Call) -> Reply:
    """Make an account."""
    return Reply(200, call.services.accounts.create(**call.fields))


def show(call: Call) -> Reply:
    """Show an account."""
    return Reply(200, call.services.accounts.get(call.path["id"]))


def update(call: Call) -> Reply:
    """Change an account's quotas."""
    return Reply(200, call.services.accounts.update(call.path["id"], call.fields.get("quotas", {})))


def delete(call: Call) -> Reply:
    """Delete an account."""
    call.services.accounts.delete(call.path["id"])
    call.services.tokens.forget()
    return Reply(204)


def tokens(call: Call) -> Reply:
    """List an account's tokens."""
    return Reply(200, call.services.tokens.list(call.path["id"]))


def create_token(call: Call) -> Reply:
    """Make a token; its secret is in this answer and nowhere else."""
    return Reply(200, call.services.tokens.create(call.path["id"], **call.fields))


def revoke_token(call: Call) -> Reply:
    """Revoke a token."""
    call.services.tokens.revoke(call.path["id"], call.path["token_id"])
    return Reply(204)


def collect(call: Call) -> Reply:
    """Collect an account's garbage now."""
    return Reply(202, call.services.collect.request(call.path["id"]))
