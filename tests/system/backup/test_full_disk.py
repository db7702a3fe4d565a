"""A store, and a target, on a disk that has no room left."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Geometry
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.save.save import Backup, save
from lunr.backup.stores import open_store
from tests.support.services import need_root
from tests.unit.backup.support import KEYS, MemorySource, load_bytes

GEOMETRY = Geometry()


@pytest.fixture
def small_disk(run_folder: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    need_root()
    point = Path(tempfile.mkdtemp(prefix="full-", dir=run_folder))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def _save(repo: Repository, data: bytes, backup_id: str) -> None:
    source = MemorySource(data, chunk=GEOMETRY.chunk)
    save(repo, source, Backup(backup_id, "v", "now", geometry=GEOMETRY))


def test_a_store_that_is_full(small_disk: Path) -> None:
    repo = Repository(open_store(f"files:{small_disk}", "account"), KEYS)
    first = os.urandom(10 << 20)
    _save(repo, first, "b1")
    with pytest.raises(errors.StoreFull, match="is full: No space left on device"):
        _save(repo, os.urandom(30 << 20), "b2")
    assert list(repo.backup_ids()) == ["b1"]
    assert load_bytes(repo, "b1") == first
    # What the failed save had stored is garbage, and collecting it needs little room.
    found = collect(repo)
    assert found.collection is not None
    sweep(repo, found.collection)
    second = os.urandom(10 << 20)
    _save(repo, second, "b3")
    assert load_bytes(repo, "b3") == second
    repo.store.close()


def test_a_target_that_is_full(small_disk: Path, tmp_path: Path) -> None:
    repo = Repository(open_store(f"files:{tmp_path}/store", "account"), KEYS)
    _save(repo, os.urandom(40 << 20), "b")
    with pytest.raises(errors.TargetError, match="No space left on device"):
        restore(repo, "b", small_disk / "out", create=True)
    assert list(small_disk.iterdir()) == []
    repo.store.close()
