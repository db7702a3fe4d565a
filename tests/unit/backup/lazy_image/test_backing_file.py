"""Local storage."""

from __future__ import annotations

import contextlib
import random
import tempfile
from pathlib import Path

import pytest

from lunr.backup.lazy_image.backing_file import BackingFile


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("place", ["disk", "memory"])  # the latter can't forget what is written
def test_reads_what_was_written(tmp_path: Path, place: str, keep: bool) -> None:
    shm = Path("/dev/shm")
    if place == "memory" and not shm.exists():
        pytest.skip("needs a tmpfs at /dev/shm")
    data = memoryview(random.Random(1).randbytes(3 * 4096))
    with tempfile.NamedTemporaryFile(dir=tmp_path if place == "disk" else shm) as file:
        file.truncate(1 << 20)
        with contextlib.closing(BackingFile(Path(file.name))) as local:
            for offset in (8192, 65536):
                local.write(offset, data, keep)
            for offset in (8192, 65536):
                assert local.read(offset, memoryview(bytearray(len(data)))) == data
            assert bytes(local.read(0, memoryview(bytearray(8192)))) == bytes(8192)
            local.sync()
