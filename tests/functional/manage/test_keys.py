"""A change of the master key, as an operator makes it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lunr.backup.repository import sessions
from tests.functional.manage.conftest import Manage
from tests.unit.backup.support import load_bytes, save_bytes

DATA = bytes(range(256)) * 20


@pytest.fixture
def ready(manage: Manage) -> Manage:
    """With a key, a database, and a backup that the key wrote."""
    manage("key", "make", str(manage.folder / "master.key"))
    assert manage("database", "upgrade").exit_code == 0
    with manage.repository("acme") as repository:
        save_bytes(repository, DATA, "b1")
    return manage


def keys(manage: Manage) -> list[tuple[str, bool, int]]:
    return [tuple(key.values()) for key in manage.told("key", "list")["keys"]]


def read(manage: Manage, backup: str) -> bytes:
    with manage.repository("acme") as repository:
        return load_bytes(repository.of(repository.load_root(backup)), backup)


def test_a_key_is_rotated_and_the_old_one_dropped_when_nothing_needs_it(ready: Manage) -> None:
    ((old, _, _),) = keys(ready)
    file = ready.folder / "master.key"
    new = ready.told("key", "rotate")["id"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with ready.repository("acme") as repository:
        save_bytes(repository, DATA, "b2", "b1")
    assert keys(ready) == [(new, True, 1), (old, False, 1)]
    assert read(ready, "b1") == read(ready, "b2") == DATA
    refused = ready("key", "drop", old)
    assert refused.exit_code == 1
    assert "1 backups can't be read without it" in refused.output
    with ready.repository("acme") as repository:
        repository.delete_root("b1")
    assert ready("key", "drop", old).exit_code == 0
    assert keys(ready) == [(new, True, 1)]
    assert read(ready, "b2") == DATA
    assert len(file.read_text().split()) == 1


def test_a_key_can_be_read_by_all_nodes_before_it_writes(ready: Manage) -> None:
    ((old, _, _),) = keys(ready)
    new = ready.told("key", "rotate", "--later")["id"]
    with ready.repository("acme") as repository:
        assert save_bytes(repository, DATA, "b2", "b1").parent_id == "b1"
    assert keys(ready) == [(old, True, 2), (new, False, 0)]
    ready.told("key", "use", new)
    assert [key[:2] for key in keys(ready)] == [(new, True), (old, False)]
    assert read(ready, "b2") == DATA


def test_the_key_that_writes_is_not_dropped(ready: Manage) -> None:
    ((old, _, _),) = keys(ready)
    assert "it writes" in ready("key", "drop", old).output
    assert "no master key 0123" in ready("key", "drop", "0123").output
    assert len(keys(ready)) == 1


def test_no_key_is_dropped_while_something_is_saved_or_missed(ready: Manage) -> None:
    ((old, _, _),) = keys(ready)
    new = ready.told("key", "rotate")["id"]
    with ready.repository("acme") as repository:
        repository.delete_root("b1")
        with sessions.Writer(repository, "b2"):
            assert "b2 is being saved" in ready("key", "drop", old).output
        save_bytes(repository, DATA, "b3")
    assert ready.told("rebuild", "--from-store")["made"] == 1
    with ready.repository("acme") as repository:
        repository.delete_root("b3")  # and its record says that it is there
    assert "root of backup b3" in ready("key", "drop", old).output
    assert [key.name for key in ready.folder.glob("master.key")] == ["master.key"]
    assert len((ready.folder / "master.key").read_text().split()) == 2, (old, new)


def test_backups_that_no_key_reads_are_counted(ready: Manage, tmp_path: Path) -> None:
    (ready.folder / "master.key").unlink()
    ready("key", "make", str(ready.folder / "master.key"))
    assert ready.told("key", "list")["unreadable"] == 1


def test_keys_in_barbican_are_changed_there(ready: Manage) -> None:
    conf = ready.file.read_text().replace(f"file:{ready.folder}/master.key", "barbican:some-id")
    ready.file.write_text(conf)
    assert "barbican:some-id" in ready("key", "rotate").output
