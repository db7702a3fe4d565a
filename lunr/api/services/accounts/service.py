"""Accounts and their quotas."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services import views
from lunr.api.services.pagination import Listing, Query
from lunr.common import errors, ids, times
from lunr.db.models import Account, Backup, Snapshot, Token, Volume, columns

#: Words that the paths of the API use where an account's id stands.
RESERVED = frozenset({"admin", "nodes"})

LISTING = Listing(
    "accounts",
    Account,
    select(*columns(Account)),
    views.account,
    (Account.created_at, Account.id),
    Account.id,
    hides=None,
)


class Accounts:
    """What an admin can do with accounts."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, id: str | None = None, quotas: dict[str, int | None] | None = None) -> Any:
        """Make an account.

        Raises:
            errors.InvalidField: the id is not one, or is reserved.
            errors.IdInUse: there is, or was, an account with the id.
        """
        id = ids.new() if id is None else _check(id)
        return self._context.db.write(self._create, id, quotas or {})

    def _create(self, session: Session, id: str, quotas: dict[str, int | None]) -> Any:
        if session.get(Account, id) is not None:
            raise errors.IdInUse(kind="account", id=id, differs="it is taken")
        account = Account(id=id, **{f"quota_{name}": value for name, value in quotas.items()})
        session.add(account)
        session.flush()
        return views.account(account)

    def ensure(self, id: str) -> None:
        """Make the account, with the default quotas, unless there is one.

        Raises:
            errors.InvalidField: the id is not one, or is reserved.
            errors.NotFound: the account was deleted.
        """
        with self._context.db.read() as connection:
            row = connection.execute(
                select(Account.deleted_at).where(Account.id == id)
            ).one_or_none()
        if row is None:
            self._context.db.write(self._ensure, _check(id))
        elif row.deleted_at is not None:
            raise errors.NotFound(kind="account", id=id)

    def _ensure(self, session: Session, id: str) -> None:
        if session.get(Account, id) is None:
            session.add(Account(id=id))

    def list(self, query: Query) -> Any:
        """A page of accounts, the deleted ones too."""
        with self._context.db.read() as connection:
            return LISTING.page(connection, query, self._context.settings.page_limit)

    def get(self, id: str) -> Any:
        """The account.

        Raises:
            errors.NotFound: there is none.
        """
        with self._context.db.read() as connection:
            row = connection.execute(LISTING.statement.where(Account.id == id)).one_or_none()
        if row is None:
            raise errors.NotFound(kind="account", id=id)
        return views.account(row)

    def update(self, id: str, quotas: dict[str, int | None]) -> Any:
        """Change some of the quotas; None goes back to the default.

        Raises:
            errors.NotFound: there is no such account, or it is deleted.
        """
        return self._context.db.write(self._update, id, quotas)

    def _update(self, session: Session, id: str, quotas: dict[str, int | None]) -> Any:
        account = lock(session, id)
        for name, value in quotas.items():
            setattr(account, f"quota_{name}", value)
        return views.account(account)

    def delete(self, id: str) -> None:
        """Delete an account and its tokens. Its backups stay until they are deleted.

        Raises:
            errors.NotFound: there is no such account.
            errors.InUse: it has volumes (and so perhaps snapshots and exports).
        """
        self._context.db.write(self._delete, id)

    def _delete(self, session: Session, id: str) -> None:
        account = lock(session, id)
        volumes, _ = usage(session, id)
        if volumes:
            raise errors.InUse(kind="account", id=id, reason=f"it has {volumes} volumes")
        for token in session.scalars(select(Token).where(Token.account_id == id)):
            session.delete(token)
        account.deleted_at = times.now()


def _check(id: str) -> str:
    if ids.check(id) in RESERVED:
        raise errors.InvalidField(field="id", reason=f"{id!r} is reserved")
    return id


def lock(session: Session, id: str) -> Account:
    """The account, locked until the end of the transaction: quotas are counted under it.

    Raises:
        errors.NotFound: there is no such account, or it is deleted.
    """
    account = session.scalar(
        select(Account)
        .where(Account.id == id, Account.deleted_at.is_(None))
        .with_for_update(key_share=True)
    )
    if account is None:
        raise errors.NotFound(kind="account", id=id)
    return account


def usage(session: Session, id: str) -> tuple[int, int]:
    """How many volumes the account has, and their GiB."""
    count, gigabytes = session.execute(
        select(func.count(), func.coalesce(func.sum(Volume.reserved), 0)).where(
            Volume.account_id == id, Volume.status != "DELETED"
        )
    ).one()
    return count, int(gigabytes)


def check_volume_quota(
    session: Session, context: Context, account: Account, volumes: int, gigabytes: int
) -> None:
    """Make sure that the locked `account` may have more volumes and GiB.

    Raises:
        errors.QuotaExceeded: it may not.
    """
    count, used = usage(session, account.id)
    _compare(context, account, "volumes", count, volumes)
    _compare(context, account, "gigabytes", used, gigabytes)


def check_quota(
    session: Session, context: Context, account: Account, model: type[Snapshot] | type[Backup]
) -> None:
    """Make sure that the locked `account` may have one more of the snapshots or backups.

    Raises:
        errors.QuotaExceeded: it may not.
    """
    used = (
        select(func.count())
        .select_from(model)
        .where(model.account_id == account.id, model.status != "DELETED")
    )
    if model is Backup:  # those that lunr makes for itself are not the account's to pay for
        used = used.where(Backup.internal.is_(False))
    _compare(context, account, model.__tablename__, session.scalar(used) or 0, 1)


def _compare(context: Context, account: Account, quota: str, used: int, asked: int) -> None:
    own: int | None = getattr(account, f"quota_{quota}")
    limit = context.settings.quotas[quota] if own is None else own
    if asked and used + asked > limit:
        raise errors.QuotaExceeded(quota=quota, limit=limit, used=used, asked=asked)
