"""The exception table of dm-snapshot: real bytes of the kernel's, and random tables."""

from __future__ import annotations

import itertools
import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common.extents import Extent
from lunr.storage.pools.lvm import cow

GOLDEN = Path(__file__).parent / "golden"
KIB = 1 << 10


def reader(area: bytes) -> cow.Read:
    return lambda offset, length: area[offset : offset + length]


def kernel_writes(chunk: int, olds: list[int], room: int | None = None) -> bytes:
    """A COW area as drivers/md/dm-snap-persistent.c fills it, but for the data: that is zeros."""
    stride = chunk // 16 + 1
    area = bytearray(chunk * 2)
    struct.pack_into("<4I", area, 0, 0x70416E53, 1, 1, chunk // 512)
    free = 2  # behind the header and the first exceptions
    for number, old in enumerate(olds):
        nth, entry = divmod(number, stride - 1)
        place = (1 + nth * stride) * chunk + entry * 16
        area.extend(bytes(max(0, (free + 1) * chunk - len(area), place + chunk - len(area))))
        struct.pack_into("<2Q", area, place, old, free)
        free += 1
        if free % stride == 1:  # the next area's exceptions
            free += 1
    area.extend(bytes(2 * chunk))
    return bytes(area if room is None else area[:room])


def test_the_kernels_own_bytes() -> None:
    """300 chunks of 4 KiB, so two areas, written in this order in the VM."""
    area = zlib.decompress((GOLDEN / "cow-4k.z").read_bytes())
    written = random.Random(5).sample(range(4096), 300)
    table = cow.exceptions(reader(area))
    assert table.chunk == 4 * KIB
    assert [old for old, _ in table] == written
    assert list(table) == list(cow.exceptions(reader(kernel_writes(4 * KIB, written))))
    touched = {
        chunk
        for extent in cow.changed(table, 16 << 20, 16 << 20)
        for chunk in range(extent.start // (4 * KIB), extent.end // (4 * KIB))
    }
    assert touched == set(written)


_olds = st.lists(st.integers(0, 700), unique=True, max_size=600)


@given(_olds, st.sampled_from([4 * KIB, 8 * KIB]), st.integers(0, 800), st.integers(0, 800))
def test_changed_is_exactly_what_was_overwritten(
    olds: list[int], chunk: int, old_size: int, new_size: int
) -> None:
    old_size, new_size = old_size * 4 * KIB, new_size * 4 * KIB
    table = cow.exceptions(reader(kernel_writes(chunk, olds)))
    found = list(cow.changed(table, old_size, new_size))
    for one, other in itertools.pairwise(found):
        assert one.end < other.start  # in order, and merged
    expected = {unit for old in olds for unit in range(old * chunk, (old + 1) * chunk, 4 * KIB)}
    expected = {unit for unit in expected if unit < min(old_size, new_size)}
    expected |= set(range(old_size, new_size, 4 * KIB))
    assert {unit for extent in found for unit in range(*extent, 4 * KIB)} == expected


@given(_olds)
def test_nothing_is_used_past_the_end_of_use(olds: list[int]) -> None:
    table = cow.exceptions(reader(kernel_writes(4 * KIB, olds)))
    last = max((new for _, new in table), default=0)
    # What was being copied when the machine died is in no table yet.
    assert cow.end_of_use(table) >= (last + 2048) * 4 * KIB


@given(st.integers(1, 1 << 46))
def test_room_for_all_that_can_be_overwritten(size: int) -> None:
    chunks = -(-size // cow.CHUNK)
    entries = cow.CHUNK // 16
    needed = 1 + chunks + -(-chunks // entries)
    assert needed * cow.CHUNK <= cow.room_for(size) <= (needed + 2) * cow.CHUNK


def test_a_table_ends_with_its_area() -> None:
    full = kernel_writes(4 * KIB, list(range(256)), room=(1 + 257) * 4 * KIB)
    assert len(list(cow.exceptions(reader(full)))) == 256


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "too short"),
        (bytes(4096), "no header"),
        (struct.pack("<4I", 0x70416E53, 0, 1, 64), "gave the snapshot up"),
        (struct.pack("<4I", 0x70416E53, 1, 2, 64), "no header"),
        (struct.pack("<4I", 0x70416E53, 1, 1, 0), "chunks of 0"),
        (struct.pack("<4I", 0x70416E53, 1, 1, 63), "chunks of"),
        (struct.pack("<4I", 0x70416E53, 1, 1, 1 << 30), "chunks of"),
    ],
)
def test_what_is_no_table_is_said(header: bytes, why: str) -> None:
    with pytest.raises(cow.CowUnreadable, match=why):
        cow.exceptions(reader(header))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_none(tail: bytes) -> None:
    area = struct.pack("<4I", 0x70416E53, 1, 1, 8).ljust(4 * KIB, b"\0") + tail.ljust(
        4 * KIB, b"\0"
    )
    for extent in cow.changed(cow.exceptions(reader(area)), 1 << 20, 1 << 20):
        assert extent.end <= 1 << 20


def test_a_volume_that_was_extended() -> None:
    table = cow.exceptions(reader(kernel_writes(32 * KIB, [0, 31])))
    whole = 32 * 32 * KIB
    assert list(cow.changed(table, whole, 2 * whole)) == [
        Extent(0, 32 * KIB),
        Extent(31 * 32 * KIB, 2 * whole),
    ]


def test_what_dmsetup_says() -> None:
    text = (
        "vg-backup--s1: 0 131072 snapshot 8320/16384 128\n"
        "vg-snap--s2: 0 131072 snapshot Invalid\n"
        "vg-odd: 0 131072 snapshot Unknown\n"
    )
    states = cow.parse_status(text)
    assert states["vg-backup--s1"] == cow.Status(8320 / 16384, "")
    assert "ran out of room" in states["vg-snap--s2"].lost
    assert "'Unknown'" in states["vg-odd"].lost
    assert cow.parse_status("No devices found\n") == {}
    assert cow.parse_status("") == {}
