"""Transactions on SQLite: whole or not at all, durable, one writer at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import exc, select, text
from sqlalchemy.orm import Session

from lunr.common import errors
from lunr.db import migrate
from lunr.db.models import Account, Token
from lunr.db.session import Database, on_commit


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/lunr.db"
    migrate.upgrade(url)
    database = Database(url)
    yield database
    database.close()


def _accounts(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(Account.id).order_by(Account.id)))


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
)
def test_every_connection_is_set_up(database: Database, pragma: str, value: object) -> None:
    with database.read() as first, database.read() as second:
        for connection in (first, second):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_a_write_that_fails_leaves_nothing_and_tells_nobody(database: Database) -> None:
    told: list[str] = []

    def work(session: Session) -> None:
        session.add(Account(id="a"))
        session.flush()
        on_commit(session, lambda: told.append("a"))
        raise errors.NoRoom(reason="test")

    with pytest.raises(errors.NoRoom):
        database.write(work)
    assert _accounts(database) == [] and told == []


def test_after_the_commit_others_can_see_it(database: Database) -> None:
    seen: list[list[str]] = []

    def work(session: Session) -> None:
        session.add(Account(id="a"))
        on_commit(session, lambda: seen.append(_accounts(database)))

    database.write(work)
    assert seen == [["a"]]


def test_a_row_inserted_first_by_another_is_found_on_the_second_try(database: Database) -> None:
    tries = 0

    def work(session: Session) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            session.add(Account(id="a"))
            session.flush()
            raise exc.IntegrityError("", {}, Exception())
        return "found"

    assert database.write(work) == "found"
    assert (tries, _accounts(database)) == (2, [])


def test_an_integrity_error_that_stays_is_raised(database: Database) -> None:
    with pytest.raises(exc.IntegrityError):
        database.write(
            lambda session: session.add(Token(id="t", hash="h", role="member", account_id="none"))
        )


def test_writers_of_many_threads_and_database_objects_take_turns(database: Database) -> None:
    others = [Database(str(database.engine.url)) for _ in range(4)]

    def count(session: Session) -> None:
        account = session.get_one(Account, "a")
        account.quota_volumes = (account.quota_volumes or 0) + 1

    database.write(lambda session: session.add(Account(id="a")))
    threads = [
        threading.Thread(target=lambda db=db: [db.write(count) for _ in range(25)])
        for db in others
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.scalar(select(Account.quota_volumes)) == 200
    for other in others:
        other.close()


def test_a_database_that_can_not_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "lunr.db").mkdir()
    database = Database(f"sqlite:///{tmp_path}/lunr.db")
    with pytest.raises(errors.Unavailable):
        database.write(lambda session: session.execute(text("SELECT 1")))
    with pytest.raises(errors.Unavailable), database.read():
        pass
    database.close()


def test_a_full_disk_is_called_so_and_changes_nothing(database: Database) -> None:
    def fill(session: Session) -> None:
        session.connection().exec_driver_sql("PRAGMA max_page_count = 1")
        session.add_all(Account(id=f"a{number}") for number in range(10_000))

    with pytest.raises(errors.DatabaseFull, match="make room"):
        database.write(fill)
    assert _accounts(database) == []
