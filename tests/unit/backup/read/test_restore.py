from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Buffer, Geometry
from lunr.backup.read.restore import restore
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import build_patched, repository, save_bytes

GEOMETRY = Geometry(block=4096, chunk=65536, segment_chunks=4)


def sparse() -> bytes:
    part = os.urandom(65536)
    return bytes(65536 * 5) + part + bytes(65536) + part[:100]


@pytest.mark.parametrize("is_zero", [False, True])
def test_whatever_was_there_is_gone(tmp_path: Path, is_zero: bool) -> None:
    repo = repository()
    data = sparse()
    save_bytes(repo, data, "b", geometry=GEOMETRY)
    target = tmp_path / "target"
    size = len(data) + 100_000
    target.write_bytes(bytes(size) if is_zero else b"\xaa" * size)
    for _ in range(2):  # the same again is the same
        done = restore(repo, "b", target, target_is_zero=is_zero)
        assert target.read_bytes() == data + bytes(100_000)
        assert done.bytes_read == 65536 + 100


def test_zeros_become_holes(tmp_path: Path) -> None:
    repo = repository()
    save_bytes(repo, sparse(), "b", geometry=GEOMETRY)
    target = tmp_path / "target"
    target.write_bytes(b"\xaa" * len(sparse()))
    restore(repo, "b", target)
    new = tmp_path / "new"
    restore(repo, "b", new, create=True)
    for path in (target, new):
        assert path.stat().st_blocks * 512 < 4 * 65536


def test_a_target_that_is_too_small_is_left_alone(tmp_path: Path) -> None:
    repo = repository()
    save_bytes(repo, b"x" * 1000, "b")
    target = tmp_path / "target"
    target.write_bytes(b"\xaa" * 999)
    with pytest.raises(errors.TargetTooSmall, match="has 999 bytes, the backup 1000"):
        restore(repo, "b", target)
    assert target.read_bytes() == b"\xaa" * 999
    target.write_bytes(b"\xaa" * 1500)
    with pytest.raises(errors.TargetTooSmall):
        restore(repo, "b", target, size_bytes=2000)


def test_no_target_and_no_backup(tmp_path: Path) -> None:
    repo = repository()
    save_bytes(repo, b"x", "b")
    with pytest.raises(errors.TargetError, match="No such file"):
        restore(repo, "b", tmp_path / "none")
    with pytest.raises(errors.TargetError, match="directory"):
        restore(repo, "b", tmp_path, create=True)
    with pytest.raises(errors.BackupMissing, match="no backup other"):
        restore(repo, "other", tmp_path / "none", create=True)
    assert not (tmp_path / "none").exists()


def test_a_patched_backup(tmp_path: Path) -> None:
    repo = repository()
    data = build_patched(repo)
    restore(repo, "patched", tmp_path / "out", create=True)
    assert (tmp_path / "out").read_bytes() == data


class Crowd(MemoryStore):
    """A store that takes its time, and counts how many ask it for data at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.ranges = 0
        self._now = 0
        self._counting = threading.Lock()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        if not name.startswith(("chunks/", "patches/")):
            return super().get(name, offset, length)
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
            self.ranges += offset > 0
        time.sleep(0.002)
        with self._counting:
            self._now -= 1
        return super().get(name, offset, length)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_told(tmp_path: Path, concurrency: int) -> None:
    crowd, geometry = Crowd(), Geometry(block=64, chunk=1024, segment_chunks=4)
    repo = repository(crowd)
    data = bytearray(os.urandom(16 * 1024))
    save_bytes(repo, bytes(data), "b0", geometry=geometry)
    # Of the patches of b1 a block is left, so that not all of them is fetched.
    for number, chunks in enumerate((range(16), [c for c in range(16) if c % 4]), start=1):
        for chunk in chunks:
            data[chunk * 1024 : chunk * 1024 + 64] = os.urandom(64)
        save_bytes(repo, bytes(data), f"b{number}", f"b{number - 1}", geometry=geometry)
    crowd.most = crowd.ranges = 0
    restore(repo, "b2", tmp_path / "out", create=True, concurrency=concurrency)
    assert (tmp_path / "out").read_bytes() == data
    assert crowd.ranges
    assert crowd.most == concurrency
