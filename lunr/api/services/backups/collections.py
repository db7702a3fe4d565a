"""Collections of garbage that are not swept yet, and the line between saves and them.

A job of the type ``repository.collect`` lists garbage (a collection); ``repository.sweep`` removes
it, but only when every save that was running by then is over: such a save began without knowing
what is listed. Saves that begin later are told (`condemned` in their payload). The account's row
is locked both when a save is claimed and when a collect ends, so that each save is on one side of
that line or the other.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.common import errors, ids
from lunr.db.models import Account, Collection


def lock_account(session: Session, account_id: str) -> Account:
    """The account, deleted or not, locked until the end of the transaction.

    Raises:
        errors.NotFound: there is no such account.
    """
    account = session.scalar(
        select(Account).where(Account.id == account_id).with_for_update(key_share=True)
    )
    if account is None:
        raise errors.NotFound(kind="account", id=account_id)
    return account


def find_unswept(session: Session, account_id: str) -> list[str]:
    """The collections of the account that are not swept yet, oldest first."""
    return list(
        session.scalars(
            select(Collection.id)
            .where(Collection.account_id == account_id)
            .order_by(Collection.created_at, Collection.id)
        )
    )


def read_collections(result: dict[str, Any]) -> list[str]:
    """The collections in the result of a collect job.

    They are its own, and those of others that died before they told, or that a lost database
    knew of: the node finds their lists in the store. Else nobody would, and what they name would
    stay.

    Raises:
        errors.InvalidField: they are something else.
    """
    own, others = result.get("collection"), result.get("unswept", [])
    if not isinstance(others, list):
        raise errors.InvalidField(field="result.unswept", reason="it is a list of ids")
    collections = [*others, *([] if own is None else [own])]
    return list(dict.fromkeys(ids.check(id, "result.collection") for id in collections))
