from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from lunr.backup.save.block_source import FileSource

UNIT = 1 << 20


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("size", [UNIT * 3, UNIT * 3 + 1, UNIT * 2 + 4097, 512, 1])
def test_a_file_is_read_through_the_cache_and_past_it(
    tmp_path: Path, size: int, warm: bool
) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    if not warm:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = mmap.mmap(-1, UNIT)
    with FileSource(path) as source:
        assert source.size == size
        parts = [
            bytes(source.read(buffer, at, min(UNIT, size - at))) for at in range(0, size, UNIT)
        ]
    assert b"".join(parts) == data


def test_holes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.seek(UNIT * 2)
        file.write(b"x" * 100)
        file.truncate(UNIT * 5)
    with FileSource(path) as source:
        ranges = list(source.data(0, UNIT * 5))
        assert ranges[0][0] <= UNIT * 2 < ranges[-1][1] < UNIT * 3
        assert list(source.data(UNIT * 3, UNIT * 5)) == []
        assert list(source.data(0, UNIT)) == []


def test_a_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with FileSource(tmp_path / "file", 10) as source:
        assert source.size == 10
        assert list(source.data(0, 10)) == [(0, 10)]
