"""Transactions.

Reads and writes have different transactions, because SQLite has one writer at a time:

- a write begins with ``BEGIN IMMEDIATE``: it waits for its turn before it reads anything, and
  can't fail later because of another write;
- within a process writers wait for a lock, not inside SQLite: under eventlet a
  green thread that waits in SQLite's busy handler stops the whole process,
  also the green thread that must commit first. For writers of
  other processes the busy handler is right: they are not stopped;
- a read is one or several statements without a common snapshot, outside of any
  transaction.

SQLite runs with WAL and ``synchronous=FULL``: a commit is on the disk when it
returns. With NORMAL a power cut could undo a commit that a caller has seen.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import Connection, event, exc
from sqlalchemy.orm import Session, sessionmaker

from lunr.common import errors

log = logging.getLogger(__name__)

#: How often a write that lost a race in the database is repeated.
ATTEMPTS = 10
#: SQLSTATEs after which the transaction must be repeated in PostgreSQL:
#: serialization failure, deadlock, lock not available.
RETRY_STATES = frozenset({"40001", "40P01", "55P03"})
#: The errors of a full disk: of SQLite (https://sqlite.org/rescode.html), also for the index of
#: the log, and the SQLSTATE of PostgreSQL.
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_POSTGRESQL_FULL = "53100"
#: Milliseconds to wait for a writer of another process (SQLite).
BUSY_TIMEOUT = 30_000

#: Not that of the process: code that seeds that one expects to use it alone.
_random = random.Random()  # noqa: S311 - no secret

P = ParamSpec("P")
T = TypeVar("T")

# One lock a database, shared by all its Database objects.
_writers: dict[str, threading.Lock] = {}


class Database:
    """The connections to one database, for all threads of the process.

    Args:
        url: an SQLAlchemy URL of SQLite (a file) or PostgreSQL.
        pool_size: connections that are kept open.
    """

    def __init__(self, url: str, pool_size: int = 10) -> None:
        try:
            parsed = sqlalchemy.make_url(url)
        except exc.ArgumentError as error:
            raise errors.ConfigError(reason="[database] connection is not a URL") from error
        if parsed.drivername == "postgresql":
            # The driver that lunr is tested with; SQLAlchemy's default changed with 2.1.
            parsed = parsed.set(drivername="postgresql+psycopg2")
        self.sqlite = parsed.get_backend_name() == "sqlite"
        if self.sqlite and parsed.database in (None, "", ":memory:"):
            raise errors.ConfigError(reason="[database] connection names no file")
        try:
            self.engine = sqlalchemy.create_engine(
                parsed, pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=not self.sqlite
            )
        except (exc.SQLAlchemyError, ImportError) as error:
            raise errors.ConfigError(reason=f"[database] connection: {error}") from error
        self._lock = (
            _writers.setdefault(str(parsed.database), threading.Lock()) if self.sqlite else None
        )
        #: The same connections, for writes: see :func:`_begin`.
        self.writer = self.engine.execution_options(lunr_write=True)
        #: What follows a move of a record (:mod:`lunr.db.transitions`), in its transaction: by
        #: model and new state a function that is given the session and the record's id.
        self.follow_ups: dict[tuple[Any, str], Callable[[Session, str], None]] = {}
        self._session = sessionmaker(
            self.writer, expire_on_commit=False, info={"follow_ups": self.follow_ups}
        )
        if self.sqlite:
            event.listen(self.engine, "connect", _prepare)
            event.listen(self.engine, "begin", _begin)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read with.

        Raises:
            errors.Unavailable: the database can't be reached.
        """
        try:
            with self.engine.connect() as connection:
                yield connection
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            raise _unavailable(error) from error

    def write(
        self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work(session, …)`` in one transaction, committed when it returns.

        It is repeated after a deadlock, or when another transaction inserted a row first: so
        `work` may only change the session. The functions that it puts into
        ``session.info["committed"]`` (a list) are called after the commit.

        Raises:
            errors.Unavailable: the database can't be reached or stays too busy.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._lock or contextlib.nullcontext(), self._session.begin() as session:
                    result = work(session, *args, **kwargs)
            except (exc.IntegrityError, exc.OperationalError, exc.InterfaceError) as error:
                if attempt == ATTEMPTS or not self._lost_a_race(error):
                    if isinstance(error, exc.IntegrityError):
                        raise
                    raise _unavailable(error) from error
                time.sleep(_random.uniform(0, min(0.2, 0.002 * 2**attempt)))
            except exc.TimeoutError as error:
                raise _unavailable(error) from error
            else:
                for function in session.info.get("committed", ()):
                    function()
                return result
        raise AssertionError  # the last attempt returns or raises

    def close(self) -> None:
        """Close the connections that are open and idle."""
        self.engine.dispose()

    def _lost_a_race(self, error: exc.DBAPIError) -> bool:
        if isinstance(error, exc.IntegrityError):
            return True
        return getattr(error.orig, "pgcode", None) in RETRY_STATES


def on_commit(session: Session, function: Callable[[], None]) -> None:
    """Call `function` when the transaction of `session` has been committed."""
    session.info.setdefault("committed", []).append(function)


def _unavailable(error: exc.SQLAlchemyError) -> errors.Unavailable:
    log.error("The database can't be used: %s", error)
    if _is_full(error):
        return errors.DatabaseFull()
    return errors.Unavailable(what="The database", reason="the service's log says why; try again")


def _is_full(error: exc.SQLAlchemyError) -> bool:
    """Whether a statement failed as the disk of the database has no room."""
    cause = getattr(error, "orig", None)
    return (
        getattr(cause, "sqlite_errorcode", None) in _SQLITE_FULL
        or getattr(cause, "pgcode", None) == _POSTGRESQL_FULL
    )


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 must not begin transactions on its own
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("lunr_write"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
