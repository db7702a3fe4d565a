"""What verifying backups finds.

A backup that has lost something stays AVAILABLE: it may come back when a part of
the store was only away, and the next backup may be built on what is left of it.
But it says so (`damaged`), and no volume is made from it. Only a verify of all
of that very backup takes the mark away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from lunr.common import errors, ids
from lunr.common.states import Backup as State
from lunr.db.models import Backup, BackupGroup

#: The most of a reason that is kept.
_REASON = 2000
#: Ids in one statement.
_AT_ONCE = 500


class BackupDamaged(errors.Conflict):
    """Backup {id} is damaged: {reason}"""

    code = "backup_damaged"


def read_damage(result: dict[str, Any]) -> dict[str, list[str]]:
    """Reasons, and the ids of the backups that each is true of, in the result of a verify.

    Raises:
        errors.InvalidField: it is not what a verify results in.
    """
    damage: dict[str, list[str]] = {}
    try:
        for group in result.get("damaged", ()):
            damaged = [ids.check(id, "result.damaged") for id in group["backup_ids"]]
            damage.setdefault(str(group["reason"])[:_REASON], []).extend(damaged)
    except (TypeError, KeyError, AttributeError):
        raise errors.InvalidField(
            field="result.damaged", reason='it is a list of {"reason", "backup_ids"}'
        ) from None
    return damage


def mark_damaged(session: Session, account_id: str, damage: dict[str, list[str]]) -> None:
    """Mark the account's backups, and groups whose root is lost, as damaged for these reasons."""
    for reason, backup_ids in damage.items():
        for first in range(0, len(backup_ids), _AT_ONCE):
            _mark(session, account_id, backup_ids[first : first + _AT_ONCE], reason)


def mark_intact(session: Session, account_id: str, backup_id: str) -> None:
    """Take the mark from a backup of which all was verified."""
    _mark(session, account_id, [backup_id], None)


def _mark(
    session: Session, account_id: str, backup_ids: Iterable[str], damaged: str | None
) -> None:
    for model, column in ((Backup, "damaged"), (BackupGroup, "reason")):
        session.execute(
            update(model)
            .where(
                model.id.in_(backup_ids),
                model.account_id == account_id,
                model.status == State.AVAILABLE,
            )
            .values({column: damaged}),
            execution_options={"synchronize_session": "fetch"},
        )
