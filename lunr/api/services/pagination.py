"""Pages of records, newest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, select, tuple_

from lunr.common import errors

View = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """What a caller asks a list for.

    Attributes:
        account_id: only this account's; None: every account's (admin).
        filters: column name -> value; ``metadata.KEY`` looks into the metadata.
        limit: at most so many; None: as many as the service gives in one page.
        marker: the last id of the page before.
    """

    account_id: str | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    marker: str | None = None


@dataclass(frozen=True)
class Listing:
    """How records of one model are listed.

    Attributes:
        name: what the answer calls them.
        statement: selects the columns that `view` needs.
        order: the columns it is ordered by.
        marker: the column that a page's marker names.
        hides: the status that is listed only when it is asked for.
    """

    name: str
    model: Any
    statement: Select[Any]
    view: Callable[[Row[Any]], View]
    order: Sequence[Any]
    marker: Any
    hides: str | None = "DELETED"

    def page(self, connection: Connection, query: Query, page_limit: int) -> View:
        """``{name: [...], "next": marker or None}``.

        Raises:
            errors.InvalidField: the marker names no record of the account.
        """
        statement = self.statement
        if query.account_id is not None:
            statement = statement.where(self.model.account_id == query.account_id)
        if self.hides and "status" not in query.filters:
            statement = statement.where(self.model.status != self.hides)
        for name, value in query.filters.items():
            statement = statement.where(self._column(name) == value)
        if query.marker is not None:
            statement = statement.where(
                tuple_(*self.order) < tuple_(*self._position(connection, query))
            )
        limit = min(query.limit or page_limit, page_limit)
        statement = statement.order_by(*(column.desc() for column in self.order))
        rows = connection.execute(statement.limit(limit + 1)).all()
        things = [self.view(row) for row in rows[:limit]]
        last = getattr(rows[limit - 1], self.marker.key) if len(rows) > limit else None
        return {self.name: things, "next": last}

    def _column(self, name: str) -> Any:
        if name.startswith("metadata."):
            return self.model.meta[name.removeprefix("metadata.")].as_string()
        return getattr(self.model, name)

    def _position(self, connection: Connection, query: Query) -> Sequence[Any]:
        statement = select(*self.order).where(self.marker == query.marker)
        if query.account_id is not None:
            statement = statement.where(self.model.account_id == query.account_id)
        row = connection.execute(statement).one_or_none()
        if row is None:
            raise errors.InvalidField(field="marker", reason="it is not the end of a page")
        return row
