"""The migrations make what the models say, on SQLite."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, insert, select, text

from lunr.common import errors
from lunr.db import migrate
from lunr.db.models import Backup, BackupGroup, Base, Export, Job, Node, Schedule, Volume
from lunr.db.session import Database


def differences(url: str) -> list[object]:
    """What separates the migrated database from the models."""
    database = Database(url)
    try:
        with database.read() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            return list(compare_metadata(context, Base.metadata))
    finally:
        database.close()


def test_models_equal_migrations(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lunr.db"
    migrate.upgrade(url)
    assert differences(url) == []
    migrate.upgrade(url)  # again is nothing
    assert (tmp_path / "lunr.db").stat().st_mode & 0o777 == 0o600


def test_the_comparison_sees_a_difference(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lunr.db"
    migrate.upgrade(url)
    database = Database(url)
    database.write(lambda session: session.execute(text("DROP INDEX ix_jobs_queue")))
    database.close()
    assert len(differences(url)) == 1


def test_records_of_the_first_schema_stay_as_they_are(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lunr.db"
    migrate.upgrade(url, "0001")
    values = {"id": "x", "account_id": "x", "created_at": "2026-01-01 00:00:00"}
    database = Database(url)
    with database.writer.begin() as connection:
        for table in ("accounts", "nodes", "volumes", "backups"):
            # What must have a value gets one that any column takes, or its own from above.
            given = {
                row.name: values.get(row.name, "7")
                for row in connection.execute(text(f"PRAGMA table_info({table})"))
                if row.notnull or row.name in values
            }
            marks = ", ".join(f":{name}" for name in given)
            names = ", ".join(f'"{name}"' for name in given)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), given)
    migrate.upgrade(url)
    with database.read() as connection:
        assert connection.execute(select(Node.id, Node.full, Node.limits_io)).all() == [
            ("x", "", False)
        ]
        assert connection.scalars(select(Volume.transfer_id)).all() == [None]
        assert connection.execute(select(Backup.internal, Backup.snapshot_id)).all() == [
            (False, None)
        ]
    database.close()


def add(connection: Connection, to: str, **values: Any) -> None:
    """Insert a row into the table `to` as it is by now; what must have a value gets one."""
    table = Table(to, MetaData(), autoload_with=connection)
    made: dict[type, Any] = {datetime: lambda: datetime(2026, 1, 1), object: dict}
    needed = {
        column.name: made.get(column.type.python_type, column.type.python_type)()
        for column in table.columns
        if not (column.nullable or column.server_default or column.name == "seq")
    }
    connection.execute(insert(table).values({**needed, **values}))


def check_volumes_of_old(url: str) -> None:
    """External volumes of the schema 0007 are said to be that, and all rows stay."""
    migrate.upgrade(url, "0007")
    database = Database(url)
    try:
        with database.writer.begin() as connection:
            add(connection, "accounts", id="acme")
            disk = {"id": "disk", "status": "EXTERNAL", "node_id": "", "volume_type_name": ""}
            own = {"id": "own", "status": "ACTIVE", "node_id": "n1", "volume_type_name": "fast"}
            for volume in (disk, own):
                add(connection, "volumes", account_id="acme", size=3, name="x", **volume)
            add(connection, "exports", volume_id="own", account_id="acme", status="ATTACHED")
            add(connection, "schedules", id="s1", account_id="acme", volume_id="own")
        migrate.upgrade(url)
        chosen = select(
            *(Volume.id, Volume.kind, Volume.node_id, Volume.volume_type_name, Volume.size)
        )
        with database.read() as connection:
            assert connection.execute(chosen.order_by(Volume.id)).all() == [
                ("disk", "external", None, None, 3),
                ("own", "local", "n1", "fast", 3),
            ]
            assert connection.scalars(select(Export.volume_id)).all() == ["own"]
            assert connection.scalars(select(Schedule.volume_id)).all() == ["own"]
    finally:
        database.close()


def check_groups_of_old(url: str) -> None:
    """Backups of the schema 0008 that tied a group are groups; all others stay."""
    migrate.upgrade(url, "0008")
    database = Database(url)
    tie = {"internal": True, "volume_id": "web", "metadata": {"frozen": "2"}}
    rows: dict[str, dict[str, Any]] = {
        "g1": {**tie, "group_id": "g1", "status": "AVAILABLE", "progress": 100},
        "g1-root": {"group_id": "g1", "status": "AVAILABLE"},
        "g2": {**tie, "group_id": "g2", "status": "DELETING", "job_id": "j2"},
        "g2-root": {"group_id": "g2", "status": "DELETED"},
        "g3": {**tie, "group_id": "g3", "status": "AVAILABLE", "damaged": "Its root is lost."},
        "left": {"group_id": "gone", "status": "ERROR"},
        "hidden": {"internal": True, "status": "AVAILABLE"},
        "own": {"status": "AVAILABLE"},
    }
    try:
        with database.writer.begin() as connection:
            add(connection, "accounts", id="acme")
            for id, values in rows.items():
                add(connection, "backups", id=id, account_id="acme", **values)
            for id, subject in (("j1", "own"), ("j2", "g2")):
                job = {"kind": "backup.delete", "subject_id": subject}
                add(connection, "jobs", id=id, account_id="acme", lane=id, **job)
        migrate.upgrade(url)
        group = select(
            *(BackupGroup.id, BackupGroup.machine, BackupGroup.status, BackupGroup.reason),
            *(BackupGroup.progress, BackupGroup.meta, BackupGroup.job_id),
        )
        backup = select(Backup.id, Backup.group_id, Backup.internal)
        with database.read() as connection:
            assert connection.execute(group.order_by(BackupGroup.id)).all() == [
                ("g1", "web", "AVAILABLE", None, 100, {"frozen": "2"}, None),
                ("g2", "web", "DELETING", None, 0, {"frozen": "2"}, "j2"),
                ("g3", "web", "AVAILABLE", "Its root is lost.", 0, {"frozen": "2"}, None),
            ]
            assert connection.execute(backup.order_by(Backup.id)).all() == [
                ("g1-root", "g1", False),
                ("g2-root", "g2", False),
                ("hidden", None, True),
                ("left", None, False),
                ("own", None, False),
            ]
            jobs = select(Job.id, Job.data).order_by(Job.id)
            assert connection.execute(jobs).all() == [("j1", {}), ("j2", {"is_group": True})]
    finally:
        database.close()


def test_groups_of_old(tmp_path: Path) -> None:
    check_groups_of_old(f"sqlite:///{tmp_path}/lunr.db")


def test_external_volumes_of_old(tmp_path: Path) -> None:
    check_volumes_of_old(f"sqlite:///{tmp_path}/lunr.db")


def test_an_old_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lunr.db"
    database = Database(url)
    with pytest.raises(errors.ConfigError, match="lunr-manage database upgrade"):
        migrate.check(database)
    migrate.upgrade(url)
    migrate.check(database)
    database.close()


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///:memory:", "oracle://x/y"])
def test_an_unusable_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(errors.ConfigError, match="connection"):
        Database(url)


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="No such file"):
        migrate.upgrade(f"sqlite:///{tmp_path}/none/lunr.db")
