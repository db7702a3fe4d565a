"""Upgrade a database to the newest schema, or check that it has it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc

from lunr.common import errors
from lunr.db.session import Database

_FOLDER = Path(__file__).with_name("migrations")


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations that the database at `url` has not had yet.

    A new SQLite file is created with mode 0600 if its folder exists.

    Raises:
        errors.ConfigError: `url` can't be used.
        errors.Unavailable: the database can't be reached.
    """
    database = Database(url)
    try:
        if database.sqlite:
            _make_file(database.engine)
        with database.writer.connect() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except exc.OperationalError as error:
        raise errors.Unavailable(what="The database", reason=str(error.orig).strip()) from error
    finally:
        database.close()


def check(database: Database) -> None:
    """Make sure that `database` has the schema that this version of lunr needs.

    Raises:
        errors.ConfigError: it has another schema, or none.
        errors.Unavailable: it can't be reached.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with database.read() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision != head:
        raise errors.ConfigError(
            reason=f"the database has {f'the schema {revision}' if revision else 'no schema'}, and "
            f"{head} is needed; run `lunr-manage database upgrade`"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config


def _make_file(engine: sqlalchemy.Engine) -> None:
    path = Path(str(engine.url.database))
    try:
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise errors.ConfigError(reason=f"[database] connection: {error}") from error
