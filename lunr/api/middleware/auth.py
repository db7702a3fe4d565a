"""Who asks, by ``X-Auth-Token``, and whether they may.

- A *member* token is good for its own account's paths. The things of other
  accounts, and other accounts themselves, are not there (404).
- An *admin* token is good for every account's paths and for ``/v1.0/admin``.
- A *node* token is good for its own node's paths and nothing else.

Tokens are made with ``lunr-manage`` or by an admin, and only their hash is in
the database. A revoked token may work for five more seconds in other processes.
With ``[api] auth = keystone``, tokens of Keystone are good too: see keystone.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from lunr.api.services import Services
from lunr.api.services.accounts.tokens import Principal, Tokens
from lunr.common import errors
from lunr.common.concurrency import WSGIApp


class Identity(Protocol):
    """Who is this?"""

    def identify(self, environ: dict[str, Any]) -> Principal | None:
        """Who holds the ``X-Auth-Token`` that the request has; None: nobody known here."""


class OwnTokens:
    """The tokens in lunr's database: an :class:`Identity`."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def identify(self, environ: dict[str, Any]) -> Principal | None:
        """Who holds the token of the request, as the database says."""
        return self._tokens.identify(environ["HTTP_X_AUTH_TOKEN"])


class Auth:
    """Refuses requests whose token none of `identities` knows; they are asked in order."""

    def __init__(self, app: WSGIApp, identities: Sequence[Identity]) -> None:
        self._app = app
        self._identities = identities

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        if not environ.get("HTTP_X_AUTH_TOKEN"):
            raise errors.Unauthorized
        answers = (identity.identify(environ) for identity in self._identities)
        who = next(filter(None, answers), None)
        if who is None:
            raise errors.Unauthorized
        environ["lunr.principal"] = who
        return self._app(environ, start_response)


def authorize(services: Services, who: Principal, role: str, path: dict[str, str]) -> None:
    """Make sure that `who` may use a route of `role` with these parts of its path.

    Raises:
        errors.Forbidden: the route is for another role.
        errors.NotFound: it is for another account or node.
    """
    if role == "node":
        if who.role != "node":
            raise errors.Forbidden(role="node")
        if who.node_id != path["node"]:
            raise errors.NotFound(kind="node", id=path["node"])
    elif role == "admin":
        if who.role != "admin":
            raise errors.Forbidden(role="admin")
    elif who.role == "node":
        raise errors.Forbidden(role="member")
    elif who.account_id != path["account"]:
        if who.role != "admin":
            raise errors.NotFound(kind="account", id=path["account"])
        services.accounts.get(path["account"])
