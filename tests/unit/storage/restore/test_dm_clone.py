"""What the kernel says of a dm-clone device, and what it writes of it."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.storage.restore.dm_clone.device import REGION, CloneBroken, Status, parse_status
from lunr.storage.restore.dm_clone.metadata import BLOCK, absent_in

#: As Linux 6.1 prints it.
LINE = (
    "0 524288 clone 8 8/2048 8 58370/65536 0 2 no_hydration no_discard_passdown "
    "4 hydration_threshold 1 hydration_batch_size 1 rw \n"
)


def test_how_far_it_is() -> None:
    assert parse_status(LINE, "clone1") == Status(58370, 65536)


@pytest.mark.parametrize("line", [LINE.replace(" rw ", " ro "), "0 524288 clone Fail", "", "Error"])
def test_what_failed_is_no_progress(line: str) -> None:
    with pytest.raises(CloneBroken, match="clone1"):
        parse_status(line, "clone1")


class Metadata:
    """Metadata with so many words a block of the array, and entries a node."""

    def __init__(self, bits: list[bool], words: int, entries: int) -> None:
        self.blocks: list[bytes] = [b""]
        packed = bytes(
            sum(bit << n for n, bit in enumerate(bits[at : at + 8]))
            for at in range(0, len(bits), 8)
        )
        packed += bytes(-len(packed) % 8)
        step = words * 8
        level = [self._array(packed[at : at + step]) for at in range(0, len(packed), step)]
        flags = 2  # a leaf
        while len(level) > 1 or flags == 2:
            groups = [level[at : at + entries] for at in range(0, len(level), entries)]
            level = [self._node(group, flags) for group in groups]
            flags = 1
        sectors = len(bits) * REGION // 512
        self.blocks[0] = struct.pack(
            *("<IIQ16sQI128sQQQ", 1, 0, 0, b"", 0x8AF27F64, 1, b""),
            *(REGION // 512, sectors, level[0]),
        ).ljust(BLOCK, b"\0")

    def _add(self, block: bytes) -> int:
        self.blocks.append(block.ljust(BLOCK, b"\xee"))
        return len(self.blocks) - 1

    def _array(self, words: bytes) -> int:
        count, number = len(words) // 8, len(self.blocks)
        return self._add(struct.pack("<IIIIQ", 1, 509, count, 8, number) + words)

    def _node(self, below: list[int], flags: int) -> int:
        header = struct.pack("<IIQIIII", 1, flags, len(self.blocks), len(below), 252, 8, 0)
        keys = struct.pack("<252Q", *range(252))
        return self._add(header + keys + struct.pack(f"<{len(below)}Q", *below))

    def read(self, number: int) -> bytes:
        return self.blocks[number]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(2, 4),
)
def test_what_is_absent_is_told_to_the_region(
    runs: list[tuple[int, bool]], words: int, entries: int
) -> None:
    bits = [is_there for length, is_there in runs for _ in range(length)]
    told = list(absent_in(Metadata(bits, words, entries).read))
    assert all(one.end < other.start for one, other in itertools.pairwise(told))
    found = [True] * len(bits)
    for start, end in told:
        assert start % REGION == end % REGION == 0
        found[start // REGION : end // REGION] = [False] * ((end - start) // REGION)
    assert found == bits


def test_what_the_kernel_did_not_write_is_refused() -> None:
    good = Metadata([True, False] * 5000, 20, 3)
    for number in range(len(good.blocks)):
        for spoilt in (bytes(BLOCK), b"\xff" * BLOCK, random.Random(number).randbytes(BLOCK), b""):
            blocks = [*good.blocks[:number], spoilt, *good.blocks[number + 1 :]]
            with pytest.raises((ValueError, struct.error, IndexError)):
                list(absent_in(blocks.__getitem__))
