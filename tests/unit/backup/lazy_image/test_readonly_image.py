"""A backup as a read-only file."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from lunr.backup.lazy_image.readonly_image import Image
from tests.unit.backup.lazy_image.support import CHUNK, World
from tests.unit.backup.lazy_image.test_restored_volume import damage

TAIL = 1000


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, random.Random(1).randbytes(6 * CHUNK + TAIL))
    world.open()
    return world


def read(image: Image, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    return bytes(image.read(offset, buffer, time.monotonic() + 5))


@pytest.mark.parametrize("is_first", [True, False])
def test_one_that_is_larger_has_zeros_after_it(world: World, is_first: bool) -> None:
    size = 9 * CHUNK
    image = Image(world.source, size)
    if not is_first:  # then all of the chunk is fetched
        read(image, 6 * CHUNK, 10)
    end = len(world.data)
    assert image.size == size
    assert read(image, end - 10, 100) == world.data[-10:] + bytes(90)
    assert read(image, 6 * CHUNK, 2 * CHUNK) == world.data[-TAIL:] + bytes(2 * CHUNK - TAIL)
    assert read(image, size - CHUNK, CHUNK) == bytes(CHUNK)


def test_of_a_damaged_chunk_blocks_are_asked_for_from_then_on(world: World) -> None:
    damage(world, 2, 0.6)  # its third block of four
    image, block = Image(world.source), CHUNK // 4
    with pytest.raises(OSError, match="object"):
        read(image, 2 * CHUNK, CHUNK)
    for number in (0, 1, 3):
        offset = 2 * CHUNK + number * block
        world.weather.names.clear()
        assert read(image, offset, block) == world.data[offset : offset + block]
        assert len(world.weather.names) == 1
    with pytest.raises(OSError, match="object"):
        read(image, 2 * CHUNK + 2 * block, block)
