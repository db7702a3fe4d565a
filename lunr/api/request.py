"""One request on its way to a controller, and the answer on its way back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import webob

from lunr.api.services import Services
from lunr.api.services.accounts.tokens import Principal
from lunr.api.services.pagination import Query


@dataclass(frozen=True)
class Request:
    """A request that was routed, authorized and checked.

    Attributes:
        path: the parts of the path, by the names that the route gives them.
        fields: the parameters that were given, as the route's schema reads them.
    """

    services: Services
    who: Principal
    path: dict[str, str]
    fields: dict[str, Any]
    environ: dict[str, Any]

    @property
    def account(self) -> str:
        """The account whose things the path names."""
        return self.path["account"]

    def query(self, account_id: str | None, **filters: str) -> Query:
        """What a list is asked for; `filters` are added to those of the request."""
        given = {
            name: value for name, value in self.fields.items() if name not in ("limit", "marker")
        }
        return Query(
            account_id, given | filters, self.fields.get("limit"), self.fields.get("marker")
        )


@dataclass(frozen=True)
class Response:
    """An answer: its status and what becomes its JSON body (None: no body)."""

    status: int
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


def answer(reply: Response, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Send `reply`."""
    response = webob.Response(status=reply.status)
    if reply.body is None:
        del response.content_type
    else:
        response.content_type = "application/json"
        response.body = json.dumps(reply.body, separators=(",", ":")).encode()
    response.headers.extend(reply.headers)
    return response(environ, start_response)  # type: ignore[no-any-return]
