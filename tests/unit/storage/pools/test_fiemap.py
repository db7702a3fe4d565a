"""What the kernel answers of where a file's bytes lie."""

from __future__ import annotations

import struct

import pytest

from lunr.common.extents import Extent
from lunr.storage.pools import extent_maps
from lunr.storage.pools.extent_maps import Run
from lunr.storage.pools.files import fiemap

KIB = 1 << 10

#: linux/fiemap.h
LAST, UNKNOWN, DELALLOC, ENCODED, ENCRYPTED = 0x1, 0x2, 0x4, 0x8, 0x80
NOT_ALIGNED, INLINE, TAIL, UNWRITTEN, MERGED, SHARED = 0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000

#: XFS, of a file of which 8 KiB are shared with a snapshot, 4 KiB are a hole, 4 KiB were written
#: since, 8 KiB are a hole and 8 KiB were given room by fallocate(2).
GOLDEN = bytes.fromhex(
    "0000000000000000 0080000000000000 01000000 03000000 04000000 00000000"
    "0000000000000000 00c0000000000000 0020000000000000" + "00" * 16 + "00200000" + "00" * 12
    + "0030000000000000 00f0000000000000 0010000000000000" + "00" * 16 + "00000000" + "00" * 12
    + "0060000000000000 00a0000000000000 0020000000000000" + "00" * 16 + "01080000" + "00" * 12
)  # fmt: skip


def answer(*extents: tuple[int, int, int, int]) -> bytes:
    """Extents as logical, physical, length, flags."""
    header = struct.pack("=QQIIII", 0, 1 << 40, 1, len(extents), 2048, 0)
    return header + b"".join(
        struct.pack("=QQQQQIIII", logical, physical, length, 0, 0, flags, 0, 0, 0)
        for logical, physical, length, flags in extents
    )


def test_the_places_of_a_file() -> None:
    assert fiemap.parse(GOLDEN) == (
        [Run(0, 8 * KIB, 48 * KIB), Run(12 * KIB, 16 * KIB, 60 * KIB)],
        32 * KIB,
        True,
    )


def test_an_answer_that_is_not_the_last_says_where_to_go_on() -> None:
    assert fiemap.parse(answer((0, 7, 4096, 0))) == ([Run(0, 4096, 7)], 4096, False)
    assert fiemap.parse(answer())[2]


@pytest.mark.parametrize(
    "flag", [UNKNOWN, DELALLOC, ENCODED, ENCRYPTED, NOT_ALIGNED, INLINE, TAIL, 0x4, 0x80000000]
)
@pytest.mark.parametrize("more", [0, SHARED, UNWRITTEN])
def test_what_has_no_place_is_the_same_as_nothing(flag: int, more: int) -> None:
    runs, _, _ = fiemap.parse(answer((0, 4096, 8192, flag | more | LAST)))
    assert runs == [Run(0, 8192, None)]
    assert list(extent_maps.changed(iter(runs), 8192, iter(runs), 8192)) == [Extent(0, 8192)]


def test_what_was_never_written_is_a_hole() -> None:
    raw = answer((0, 4096, 4096, UNWRITTEN), (4096, 8192, 4096, UNWRITTEN | SHARED | MERGED | LAST))
    assert fiemap.parse(raw) == ([], 8192, True)
