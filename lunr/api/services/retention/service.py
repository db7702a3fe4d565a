"""Retention: a volume's backups are kept by rules, and those that no rule keeps are pruned.

What backups count: AVAILABLE ones that a schedule made, and that are neither
protected nor damaged. All others are kept: what somebody made by hand is never
deleted because an administrator gave its volume's type a rule. Rules count
backups, not days: a volume that gets no new backups loses none. They end with
the volume: what is left of a deleted one is deleted only by somebody.

A backup that is being restored or verified, or is a running backup's parent, is
pruned later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, and_, exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services.backups import service as backups
from lunr.api.services.retention import rules as keeping
from lunr.api.services.volumes import service as volumes
from lunr.common import errors, times
from lunr.common.states import Backup as State
from lunr.common.times import SKEW
from lunr.db.models import Backup, Volume, VolumeType, columns

#: How long a schedule's backup that failed is kept, to be looked at.
KEEP_FAILED = timedelta(days=7)
_FAILED_REASON = f"failed less than {KEEP_FAILED.days} days ago"


@dataclass(frozen=True)
class Decision:
    """What becomes of a backup, and why."""

    backup: Any
    keep: bool
    reasons: Sequence[str]


class Retention:
    """Whose rules are what, and what they come to."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def get(self, account_id: str, volume_id: str) -> Any:
        """The volume's rules, and what a prune would do now.

        Raises:
            errors.NotFound: the account has no such volume, and no backups of it.
        """
        return self.prune(account_id, volume_id, dry_run=True)

    def set(self, account_id: str, volume_id: str, rules: dict[str, int] | None) -> Any:
        """Give the volume rules of its own; none at all (``{}``) keep everything.

        Args:
            rules: None: those of its type.

        Raises:
            errors.NotFound: the account has no such volume.
        """
        if rules is not None:
            rules = {rule: count for rule, count in rules.items() if count}
        self._context.db.write(self._set, account_id, volume_id, rules)
        return self.get(account_id, volume_id)

    def _set(
        self, session: Session, account_id: str, volume_id: str, rules: dict[str, int] | None
    ) -> None:
        volumes.lock(session, account_id, volume_id).retention = rules

    def prune(
        self,
        account_id: str,
        volume_id: str,
        rules: dict[str, int] | None = None,
        *,
        by_hand: bool = False,
        dry_run: bool = False,
    ) -> Any:
        """Begin to delete the backups of a volume that no rule keeps.

        Args:
            rules: instead of the volume's own, for this once.
            by_hand: those that no schedule made count too.
            dry_run: only say which they are.

        Raises:
            errors.NotFound: the account has no such volume, and no backups of it.
        """
        with self._context.db.read() as connection:
            found = _rules(connection, account_id, volume_id)
            if rules is not None:
                found = rules, "request"
            every = _of(select(*columns(Backup)), account_id, volume_id)
            rows = connection.execute(every).all()
            verdicts = evaluate(rows, found[0], by_hand, times.now())
        if not dry_run and any(not verdict.keep for verdict in verdicts):
            verdicts = self._context.db.write(
                self._prune, account_id, volume_id, rules is not None, found[0], by_hand
            )
        return {
            "volume_id": volume_id,
            "rules": {rule: count for rule, count in found[0].items() if count},
            "rules_of": found[1],
            "backups": [_view(verdict) for verdict in verdicts],
        }

    def _prune(
        self,
        session: Session,
        account_id: str,
        volume_id: str,
        given: bool,
        rules: dict[str, int],
        by_hand: bool,
    ) -> list[Decision]:
        if not given:
            # Read again, and kept as they are until all is done: the volume may be deleted, or be
            # given others, at this moment.
            volumes.lock(session, account_id, volume_id)
            rules, _ = _rules(session.connection(), account_id, volume_id)
        # Locked before it is decided: none is protected meanwhile, or becomes a parent.
        rows = session.scalars(
            _of(select(Backup), account_id, volume_id).with_for_update(key_share=True)
        ).all()
        return [
            verdict if verdict.keep else self._discard(session, verdict)
            for verdict in evaluate(rows, rules, by_hand, times.now())
        ]

    def _discard(self, session: Session, verdict: Decision) -> Decision:
        try:
            backups.discard(session, self._context, verdict.backup)
        except errors.InUse as error:  # the next prune comes for it
            return Decision(verdict.backup, False, [error.fields["reason"]])
        return verdict

    def due(self, since: datetime | None) -> list[tuple[str, str]]:
        """Account and id of the volumes with rules, of which a schedule made backups.

        Args:
            since: only those that got one since then, or one of which changed; None: all.
        """
        made = and_(
            Backup.volume_id == Volume.id,
            Backup.schedule_id.is_not(None),
            Backup.status.in_((State.AVAILABLE, State.ERROR)),
        )
        if since is not None:
            made = and_(made, Backup.updated_at > since)
        statement = (
            select(Volume.account_id, Volume.id)
            .join(VolumeType, VolumeType.name == Volume.volume_type_name)
            .where(
                Volume.status.not_in(("DELETING", "DELETED")),
                or_(Volume.retention.is_not(None), VolumeType.retention.is_not(None)),
                exists().where(made),
            )
            .order_by(Volume.id)
        )
        with self._context.db.read() as connection:
            return [(row.account_id, row.id) for row in connection.execute(statement)]


def evaluate(
    found: Iterable[Any], rules: keeping.Rules, by_hand: bool, now: datetime
) -> list[Decision]:
    """What the rules say of a volume's backups, newest first.

    Args:
        found: models or rows of backups, AVAILABLE or in ERROR.
        by_hand: those that no schedule made count too.
    """
    newest_first = sorted(found, key=lambda row: (row.created_at, row.id), reverse=True)
    exempt = {row.id: reason for row in newest_first if (reason := _exempt(row, by_hand, now))}
    counted = [row for row in newest_first if row.id not in exempt]
    good = [(row.id, row.created_at) for row in counted if row.status == State.AVAILABLE]
    has_rules = any(rules.values())
    kept = keeping.kept(good, rules)
    verdicts = []
    for row in newest_first:
        if row.id in exempt:
            verdict = Decision(row, True, [exempt[row.id]])
        elif not has_rules:
            verdict = Decision(row, True, ["no rules"])
        elif row.status == State.ERROR:
            fresh = row.updated_at > now - KEEP_FAILED
            verdict = Decision(row, fresh, [_FAILED_REASON] if fresh else ["failed"])
        else:
            verdict = Decision(row, row.id in kept, kept.get(row.id, []))
        verdicts.append(verdict)
    return verdicts


def _exempt(row: Any, by_hand: bool, now: datetime) -> str | None:
    """Why no rule is about the backup."""
    if row.created_at > now + SKEW:  # and would be the newest for as long as that
        return "made when the clock was ahead"
    if row.protected:
        return "protected"
    if row.schedule_id is None and not by_hand:
        return "made by hand"
    if row.damaged is not None:
        return "damaged"
    return None


def _of(chosen: Select[Any], account_id: str, volume_id: str) -> Select[Any]:
    """The volume's backups that a prune looks at, in the order in which they are locked."""
    return chosen.where(
        Backup.account_id == account_id,
        Backup.volume_id == volume_id,
        Backup.status.in_((State.AVAILABLE, State.ERROR)),
        Backup.internal.is_(False),
    ).order_by(Backup.id)


def _rules(connection: Connection, account_id: str, volume_id: str) -> tuple[dict[str, int], Any]:
    """The rules that are good for a volume, and whose they are.

    Raises:
        errors.NotFound: the account has no such volume, and no backups of it.
    """
    row = connection.execute(
        select(Volume.status, Volume.retention, VolumeType.retention.label("of_type"))
        .outerjoin(VolumeType, VolumeType.name == Volume.volume_type_name)
        .where(Volume.id == volume_id, Volume.account_id == account_id)
    ).one_or_none()
    if row is None:
        left = exists().where(
            Backup.volume_id == volume_id,
            Backup.account_id == account_id,
            Backup.internal.is_(False),
            Backup.status != State.DELETED,
        )
        if not connection.scalar(select(left)):
            raise errors.NotFound(kind="volume", id=volume_id)
        return {}, None
    if row.status in ("DELETING", "DELETED"):
        return {}, None
    if row.retention is not None:
        return row.retention, "volume"
    if row.of_type is not None:
        return row.of_type, "volume_type"
    return {}, None


def _view(verdict: Decision) -> dict[str, Any]:
    backup = verdict.backup
    return {
        "id": backup.id,
        "name": backup.name,
        "created_at": times.iso(backup.created_at),
        "status": backup.status,
        "keep": verdict.keep,
        "reasons": list(verdict.reasons),
    }
