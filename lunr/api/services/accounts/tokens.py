"""Tokens: who a caller is.

A secret is 256 random bits, so its plain SHA-256 is enough to keep: there is
nothing to guess, and the database finds a token by one equality of hashes.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services import views
from lunr.api.services.accounts import service as accounts
from lunr.common import errors, ids
from lunr.db.models import Account, Node, Token

#: Seconds that a token is believed without asking the database. A token that
#: another process revoked is good for so long here.
CACHE_SECONDS = 5.0
_CACHE_SIZE = 10_000


@dataclass(frozen=True)
class Principal:
    """Who asks: `role` is member, admin (with an account) or node (with a node)."""

    token_id: str
    role: str
    account_id: str | None
    node_id: str | None


class Tokens:
    """Makes, knows and revokes tokens."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, Principal]] = {}

    def identify(self, secret: str) -> Principal | None:
        """Who holds `secret`; None: nobody."""
        digest = _digest(secret)
        known = self._cache.get(digest)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        with self._context.db.read() as connection:
            row = connection.execute(
                select(Token.id, Token.role, Token.account_id, Token.node_id).where(
                    Token.hash == digest
                )
            ).one_or_none()
        if row is None:
            return None
        principal = Principal(*row)
        with self._lock:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[digest] = (time.monotonic() + CACHE_SECONDS, principal)
        return principal

    def create(self, account_id: str, role: str = "member") -> Any:
        """Make a token of an account; ``token`` in the answer is the secret, shown this once.

        Raises:
            errors.NotFound: there is no such account.
            errors.InvalidField: the role is neither member nor admin.
        """
        if role not in ("member", "admin"):
            raise errors.InvalidField(field="role", reason="it is member or admin")
        return self._context.db.write(self._create, account_id, role)

    def _create(self, session: Session, account_id: str, role: str) -> Any:
        accounts.lock(session, account_id)
        return add(session, role, account_id=account_id)

    def create_for_node(self, node_id: str) -> Any:
        """Make another token of a node, as :meth:`create` does for an account.

        Raises:
            errors.NotFound: there is no such node.
        """
        return self._context.db.write(self._create_for_node, node_id)

    def _create_for_node(self, session: Session, node_id: str) -> Any:
        if session.get(Node, node_id) is None:
            raise errors.NotFound(kind="node", id=node_id)
        return add(session, "node", node_id=node_id)

    def list(self, account_id: str) -> Any:
        """The tokens of an account.

        Raises:
            errors.NotFound: there is no such account.
        """
        with self._context.db.read() as connection:
            if connection.scalar(select(Account.id).where(Account.id == account_id)) is None:
                raise errors.NotFound(kind="account", id=account_id)
            rows = connection.execute(
                _columns().where(Token.account_id == account_id).order_by(Token.created_at.desc())
            ).all()
        return {"tokens": [views.token(row) for row in rows], "next": None}

    def revoke(self, account_id: str, token_id: str) -> None:
        """Make a token worthless: here at once, in other processes within CACHE_SECONDS.

        Raises:
            errors.NotFound: the account has no such token.
        """
        self._context.db.write(self._revoke, account_id, token_id)
        self.forget()

    def _revoke(self, session: Session, account_id: str, token_id: str) -> None:
        token = session.get(Token, token_id)
        if token is None or token.account_id != account_id:
            raise errors.NotFound(kind="token", id=token_id)
        session.delete(token)

    def forget(self) -> None:
        """Ask the database again for every token."""
        with self._lock:
            self._cache.clear()


def add(
    session: Session, role: str, account_id: str | None = None, node_id: str | None = None
) -> Any:
    """Add a token in the transaction of `session`; the answer holds its secret."""
    secret = secrets.token_urlsafe(32)
    token = Token(
        id=ids.new(), hash=_digest(secret), role=role, account_id=account_id, node_id=node_id
    )
    session.add(token)
    session.flush()
    return {**views.token(token), "token": secret}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _columns() -> Select[*tuple[Any, ...]]:
    return select(Token.id, Token.role, Token.account_id, Token.node_id, Token.created_at)
