"""Which backups of a volume are kept."""

from __future__ import annotations

from lunr.api.request import Call, Reply
from lunr.api.schema import Boolean, Integer, Schema
from lunr.api.services.retention.rules import PERIODS

#: 0 and nothing are the same: no rule.
RULES: Schema = {rule: Integer(0, 10000) for rule in PERIODS}
PRUNE: Schema = {**RULES, "dry_run": Boolean(), "all": Boolean()}


def show(call: Call) -> Reply:
    """Show the rules of a volume, and what they keep."""
    return Reply(200, call.services.retention.get(call.account, call.path["id"]))


def put(call: Call) -> Reply:
    """Give a volume rules of its own."""
    return Reply(200, call.services.retention.set(call.account, call.path["id"], call.fields))


def delete(call: Call) -> Reply:
    """Take a volume's own rules away: those of its type are good for it again."""
    return Reply(200, call.services.retention.set(call.account, call.path["id"], None))


def prune(call: Call) -> Reply:
    """Delete what the rules don't keep, or only say what that is."""
    rules = {rule: call.fields[rule] for rule in RULES if rule in call.fields}
    dry_run = call.fields.get("dry_run", False)
    told = call.services.retention.prune(
        call.account,
        call.path["id"],
        rules or None,
        by_hand=call.fields.get("all", False),
        dry_run=dry_run,
    )
    return Reply(200 if dry_run else 202, told)
