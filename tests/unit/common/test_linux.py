"""Writes that memory need not keep."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from lunr.common import linux
from lunr.common.linux import UncachedWriter

DATA = random.Random(2).randbytes(3 * 4096 + 5)


@pytest.fixture(params=["disk", "memory"])  # the latter can't forget what is written
def file(request: pytest.FixtureRequest, tmp_path: Path) -> int:
    folder = tmp_path if request.param == "disk" else Path("/dev/shm")
    if not folder.exists():
        pytest.skip(f"needs a tmpfs at {folder}")
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    request.addfinalizer(lambda: os.close(fd))
    return fd


def test_what_is_streamed_is_there_whatever_kernel_and_file_system_can(file: int) -> None:
    streaming = UncachedWriter()
    for offset in (0, 5, 1 << 20):
        assert streaming.write(file, [DATA[:7], memoryview(DATA)[7:]], offset) == len(DATA)
    os.fsync(file)
    for offset in (5, 1 << 20):
        assert os.pread(file, len(DATA), offset) == DATA


@pytest.mark.parametrize(
    ("release", "can"),
    [("6.1.0-50-amd64", False), ("6.15.9", False), ("6.16-rc1", True), ("7.0+", True)],
)
def test_kernels_that_could_lose_a_page_are_not_asked_to_forget(
    monkeypatch: pytest.MonkeyPatch, file: int, release: str, can: bool
) -> None:
    asked: list[int] = []
    pwritev = os.pwritev

    def note(fd: int, buffers: list[bytes], offset: int, flags: int = 0) -> int:
        asked.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "this file system can't")
        return pwritev(fd, buffers, offset)

    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:2], release, *name[3:])))
    monkeypatch.setattr(linux.os, "pwritev", note)
    streaming = UncachedWriter()
    for _ in range(2):
        assert streaming.write(file, [DATA], 0) == len(DATA)
    assert [bool(flags) for flags in asked] == ([True, False, False] if can else [False, False])
