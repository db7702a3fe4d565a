"""What is known to be zeros is not read, and bad bytes are found to the sector."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.save.block_source import SECTOR, FileSource

SIZE = 64 * SECTOR


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


@st.composite
def extents(draw: st.DrawFn) -> list[tuple[int, int]]:
    edges = sorted(draw(st.sets(st.integers(0, SIZE + 100), max_size=20)))
    return list(zip(edges[::2], edges[1::2], strict=False))


@given(extents(), st.integers(0, SIZE), st.integers(0, SIZE))
def test_just_what_is_allocated_is_told(
    allocated: list[tuple[int, int]], start: int, end: int
) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * SIZE)
        file.flush()
        with FileSource(Path(file.name), allocated=allocated) as source:
            told = list(source.data(start, end))
    inside = {byte for one in allocated for byte in range(*one) if start <= byte < min(end, SIZE)}
    assert [byte for one in told for byte in range(*one)] == sorted(inside)


@pytest.mark.parametrize(
    "allocated",
    [[[0, 5], [4, 8]], [[8, 9], [0, 1]], [[3, 3]], [[-1, 2]], [[1]], [["a", "b"]], [5], 5],
)
def test_extents_out_of_order_are_refused(path: Path, allocated: Any) -> None:
    """They would make zeros of bytes that are something else."""
    with pytest.raises((TypeError, ValueError)):
        FileSource(path, allocated=allocated)


def test_a_file_that_was_cut_short_is_not_taken_for_zeros(path: Path) -> None:
    with FileSource(path, allocated=[(SECTOR, SIZE)]) as source:
        os.truncate(path, 0)
        with pytest.raises(errors.SourceError, match="it ended"):
            list(source.data(0, SIZE))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA, errno.EREMOTEIO])
@given(
    bad=st.sets(st.integers(0, SIZE // SECTOR - 1), max_size=3),
    start=st.integers(0, SIZE // SECTOR - 1),
    physical=st.sampled_from([1, 8]),
)
def test_the_first_bad_sector_is_found(
    number: int, bad: set[int], start: int, physical: int
) -> None:
    """A disk of `physical` sectors a piece: it gives a whole piece or none, and takes no less.

    tests/system/backup/test_bad_sector.py does the same with a real file system.
    """
    start = start // physical * physical
    data = os.urandom(SIZE)
    broken = {sector // physical * physical for sector in bad}
    broken = {piece + more for piece in broken for more in range(physical)}
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        assert offset % SECTOR == 0
        (view,) = buffers
        if flags:
            raise BlockingIOError
        if fd == direct and (offset | len(view)) % (physical * SECTOR):
            raise OSError(errno.EINVAL, "no multiple")
        first = offset // SECTOR // physical * physical
        last = -(-(offset + len(view)) // SECTOR // physical) * physical
        if broken.intersection(range(first, last)):
            raise OSError(number, os.strerror(number))
        return real(fd, buffers, offset)

    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(data)
        file.flush()
        with FileSource(Path(file.name)) as source, mmap.mmap(-1, SIZE) as buffer:
            direct = source._direct
            patch.setattr(os, "preadv", preadv)
            length = SIZE - start * SECTOR
            first = min((sector for sector in broken if sector >= start), default=None)
            if first is None:
                with source.read(buffer, start * SECTOR, length) as view:
                    assert view == data[start * SECTOR :]
                return
            with pytest.raises(errors.BadSector, match="Input/output error") as caught:
                source.read(buffer, start * SECTOR, length)
            assert caught.value.fields["sector"] == first
            assert caught.value.fields["offset"] == first * SECTOR
            del caught
            assert buffer[: (first - start) * SECTOR] == data[start * SECTOR : first * SECTOR]


def test_another_error_is_told_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def preadv(*args: Any) -> int:
        calls.append(args)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with FileSource(path) as source:
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(errors.SourceError, match="byte 512: Stale file handle"):
            source.read(mmap.mmap(-1, SIZE), SECTOR, SECTOR)
    assert len(calls) == 1
