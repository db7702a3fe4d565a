"""The folder of a `lunr up` as the code of an earlier commit left it, for today's to open.

tests/data/make_old_data.py made it. Its times are moved, so that it was left a moment ago: else
what is old would be purged, pruned or given up, as it should be.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tarfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

_DATA = Path(__file__).resolve().parents[1] / "data"
#: The commits of which there is data; before 701bcfd nobody had any.
COMMITS = ("701bcfd",)
#: Files that name the folder they are in.
_WITH_PATHS = ("up.json", "lunr.conf", "openrc")


class OldData:
    """Data of the code of `commit`, laid out in `folder`.

    Attributes:
        root: the folder of `lunr up`.
        tokens: secrets of the tokens of accounts and nodes.
        groups: ids of groups, by what became of them.
        digests: of what volumes, snapshots and backups hold; see tests/data/old_content.py.
        answers: what the API said of every record, by path.
    """

    def __init__(self, folder: Path, commit: str) -> None:
        with tarfile.open(_DATA / f"{commit}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        manifest: dict[str, Any] = json.loads((_DATA / f"{commit}.json").read_text())
        self.root = folder / "lunr"
        self.tokens: dict[str, str] = manifest["tokens"]
        self.groups: dict[str, str] = manifest["groups"]
        self.digests: dict[str, str] = manifest["digests"]
        self.answers: dict[str, Any] = json.loads((self.root / "answers.json").read_text())
        self._age = datetime.now(UTC) - datetime.fromisoformat(manifest["made_at"] + "+00:00")
        for name in _WITH_PATHS:
            path = self.root / name
            path.write_text(path.read_text().replace(manifest["root"], str(self.root)))

    def listed(self, name: str) -> list[dict[str, Any]]:
        """All records of that name that were not deleted, as the API showed them."""
        records: list[dict[str, Any]] = self.answers[f"/v1.0/admin/{name}?limit=1000"][name]
        return records

    def make_recent(self) -> None:
        """Move all times, as if it had been left just now."""
        self._move_records()
        self._move_files()

    def _move_records(self) -> None:
        with closing(sqlite3.connect(self.root / "lunr.db")) as database, database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                columns = database.execute(f"PRAGMA table_info({table})").fetchall()
                for column in [row[1] for row in columns if row[2] == "DATETIME"]:
                    _move_column(database, table, column, self._age)

    def _move_files(self) -> None:
        """Baselines that are too old are given up: a file tells when it was made."""
        pool = self.root / "pool"
        mount = ["mount", "-t", "xfs", "-o", "loop", str(pool / "pool.img"), str(pool / "mnt")]
        subprocess.run(mount, check=True)
        try:
            seconds = self._age.total_seconds()
            for path in (pool / "mnt").glob("*/*"):
                times = path.stat()
                os.utime(path, (times.st_atime + seconds, times.st_mtime + seconds))
        finally:
            subprocess.run(["umount", pool / "mnt"], check=True)


def _move_column(database: sqlite3.Connection, table: str, column: str, by: timedelta) -> None:
    rows = database.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL")
    for rowid, moment in rows.fetchall():
        moved = datetime.fromisoformat(moment) + by
        database.execute(
            f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
            (moved.strftime("%Y-%m-%d %H:%M:%S.%f"), rowid),
        )
