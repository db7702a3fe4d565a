"""Maps of thin devices: thin_dump's output, and what differs between two."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common.extents import Extent
from lunr.storage.pools import extent_maps
from lunr.storage.pools.extent_maps import Run
from lunr.storage.pools.thin import maps as thin_maps
from lunr.storage.pools.thin.maps import MapUnreadable

BLOCK = 64 << 10

#: thin_dump 0.9.0 of a pool in use: three written blocks, a hole, and one that was written later.
GOLDEN = b"""\
<superblock uuid="" time="1" transaction="2" flags="0" version="2" data_block_size="128" \
nr_data_blocks="0">
  <device dev_id="1" mapped_blocks="4" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="5" length="3" time="0"/>
    <single_mapping origin_block="9" data_block="8" time="1"/>
  </device>
</superblock>
"""
EMPTY = b"""\
<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" \
nr_data_blocks="0">
  <device dev_id="3" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">
  </device>
</superblock>
"""
#: What it says, with exit code 0, of a device that is not there.
NOT_THERE = b"""\
<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" \
nr_data_blocks="0">
</superblock>
"""

#: A device's map, by block.
Map = dict[int, int]
device_maps = st.dictionaries(st.integers(0, 40), st.integers(0, 60), max_size=30)


def dump(blocks: Map, device: int = 1) -> bytes:
    """What thin_dump would say of the map `blocks`."""
    lines = [
        '<superblock data_block_size="128">',
        f'<device dev_id="{device}" mapped_blocks="{len(blocks)}">',
    ]
    for start, length in ranges(blocks):
        if length == 1:
            words = f'single_mapping origin_block="{start}" data_block="{blocks[start]}"'
        else:
            words = (
                f'range_mapping origin_begin="{start}" data_begin="{blocks[start]}" '
                f'length="{length}"'
            )
        lines.append(f'<{words} time="0"/>')
    return "\n".join([*lines, "</device>", "</superblock>"]).encode()


def ranges(blocks: Map) -> Iterator[tuple[int, int]]:
    """(start, length) of the runs of `blocks`."""
    starts = [block for block in sorted(blocks) if blocks.get(block - 1) != blocks[block] - 1]
    for start in starts:
        length = 1
        while start + length not in starts and start + length in blocks:
            length += 1
        yield start, length


def runs(blocks: Map) -> Iterator[Run]:
    return thin_maps.parse([dump(blocks)], 1)


def check_form(extents: list[Extent], size: int) -> None:
    """In order, not empty, not touching, within `size`."""
    end = -1
    for extent in extents:
        assert end < extent.start < extent.end <= size
        end = extent.end


def blocks_of(extents: list[Extent]) -> set[int]:
    return {block for start, end in extents for block in range(start // BLOCK, -(-end // BLOCK))}


def test_what_thin_dump_says() -> None:
    assert list(thin_maps.parse([GOLDEN], 1)) == [
        Run(0, 3 * BLOCK, 5 * BLOCK),
        Run(9 * BLOCK, 10 * BLOCK, 8 * BLOCK),
    ]
    assert list(thin_maps.parse([EMPTY], 3)) == []


@pytest.mark.parametrize("size", range(1, 40))
def test_pieces_may_end_anywhere(size: int) -> None:
    pieces = [GOLDEN[start : start + size] for start in range(0, len(GOLDEN), size)]
    assert list(thin_maps.parse(pieces, 1)) == list(thin_maps.parse([GOLDEN], 1))


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (NOT_THERE, "not there"),
        (b"", "no element found"),
        (GOLDEN[:-20], "unclosed token"),
        (GOLDEN[: GOLDEN.index(b"  </device>")], "no element found"),
        (GOLDEN.replace(b'mapped_blocks="4"', b'mapped_blocks="5"'), "1 more blocks"),
        (GOLDEN.replace(b'dev_id="1"', b'dev_id="2"'), "device"),
        (GOLDEN.replace(b'origin_block="9"', b'origin_block="2"'), "not expected"),
        (GOLDEN.replace(b'length="3"', b'length="0"'), "not expected"),
        (GOLDEN.replace(b'origin_block="9"', b""), "origin_block"),
        (GOLDEN.replace(b"single_mapping", b"ref"), "ref"),
        (GOLDEN.replace(b'data_begin="5"', b'data_begin="five"'), "five"),
        (GOLDEN + GOLDEN, "junk"),
    ],
)
def test_a_map_that_is_not_whole_is_refused(xml: bytes, reason: str) -> None:
    with pytest.raises(MapUnreadable, match=reason):
        list(thin_maps.parse([xml], 1))


@given(device_maps, st.integers(1, 45 * BLOCK))
def test_allocated_is_what_is_mapped(blocks: Map, size: int) -> None:
    extents = list(extent_maps.allocated(runs(blocks), size))
    check_form(extents, size)
    assert blocks_of(extents) == {block for block in blocks if block * BLOCK < size}


@given(device_maps, device_maps, st.data())
def test_changed_is_what_two_maps_do_not_share(left: Map, right: Map, data: st.DataObject) -> None:
    for block in data.draw(st.sets(st.sampled_from(sorted(left)))) if left else ():
        right[block] = left[block]  # two maps of chance share next to nothing
    old_size, new_size = (BLOCK * data.draw(st.integers(1, 45)) for _ in range(2))
    extents = list(extent_maps.changed(runs(left), old_size, runs(right), new_size))
    check_form(extents, new_size)
    beyond = range(old_size // BLOCK, new_size // BLOCK)
    different = {block for block in {*left, *right} if left.get(block) != right.get(block)}
    wanted = {block for block in different if block * BLOCK < min(old_size, new_size)}
    assert blocks_of(extents) == wanted | {*beyond}


def test_a_device_may_end_inside_of_a_block() -> None:
    half = BLOCK // 2
    mapped = {0: 7, 1: 8}
    assert list(extent_maps.allocated(runs(mapped), BLOCK + half)) == [Extent(0, BLOCK + half)]
    changed = extent_maps.changed(runs({0: 7}), BLOCK + half, runs(mapped), 3 * BLOCK)
    assert list(changed) == [Extent(BLOCK, 3 * BLOCK)]


def test_memory_does_not_grow_with_the_map() -> None:
    def long(count: int) -> Iterator[bytes]:
        yield b'<superblock data_block_size="128">'
        yield b'<device dev_id="1" mapped_blocks="%d">' % count
        for block in range(count):
            yield b'<single_mapping origin_block="%d" data_block="%d"/>' % (2 * block, block)
        yield b"</device></superblock>"

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            old, new = (thin_maps.parse(long(count), 1) for _ in range(2))
            assert not list(extent_maps.changed(old, 1 << 60, new, 1 << 60))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The least of some: other threads of the process take memory now and then.
    large, small = (min(peak(count) for _ in range(3)) for count in (10_000, 2_000))
    assert large < small + 20_000
