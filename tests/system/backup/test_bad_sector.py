"""A disk that can't give some of its bytes, under the engine."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import SECTOR, FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.memory import MemoryStore
from tests.support.faults import faulty
from tests.unit.backup.support import load_bytes

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


@pytest.mark.parametrize("sector", [0, 7, 8, 16384 + 4097, SIZE // SECTOR - 1])
def test_the_first_bad_sector_is_named_and_all_before_it_was_read(image: Path, sector: int) -> None:
    chunk = sector * SECTOR // (4 * MIB) * 4 * MIB
    good = sector * SECTOR - chunk
    buffer = mmap.mmap(-1, 4 * MIB)
    with faulty.bad_sectors(image, [sector, min(sector + 100, SIZE // SECTOR - 1)]) as path:
        with FileSource(path) as source, pytest.raises(errors.BadSector) as caught:
            source.read(buffer, chunk, 4 * MIB)
        assert str(caught.value) == (
            f"{path} can't be read at byte {sector * SECTOR} "
            f"(sector {sector} of 512 bytes): Input/output error."
        )
    assert caught.value.code == "source_error"
    with image.open("rb") as file:
        assert buffer[:good] == os.pread(file.fileno(), good, chunk)


def test_a_backup_fails_with_the_sector_and_the_next_one_of_the_mended_disk_is_whole(
    image: Path,
) -> None:
    repository = Repository(MemoryStore(), derive.derive(derive.PUBLIC_MASTER, "account"))
    backup = Backup("b1", "volume", "2026-11-23T00:00:00Z")
    sector = 30001
    with (
        faulty.bad_sectors(image, [sector]) as path,
        FileSource(path) as source,
        pytest.raises(errors.BadSector, match=f"sector {sector} of 512"),
    ):
        save(repository, source, backup)
    assert list(repository.backup_ids()) == []
    with FileSource(image) as source:
        save(repository, source, backup)
    assert load_bytes(repository, "b1") == image.read_bytes()
