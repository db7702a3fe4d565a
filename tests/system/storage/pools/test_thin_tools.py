"""Maps of thin devices, from the real thin_dump; its neighbour thin_delta is the judge."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools import extent_maps
from lunr.storage.pools.extent_maps import Run
from lunr.storage.pools.thin import maps as thin_maps
from tests.support.services import need_command

BLOCK = 64 << 10
BLOCKS = 5000

#: Runs of a device: blocks of nothing before it, its length, where it is in the pool.
devices = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, BLOCKS - 40)), max_size=60
)
Device = list[tuple[int, int, int]]


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    for command in ("thin_restore", "thin_dump", "thin_delta"):
        need_command(command, "thin-provisioning-tools")


def metadata(folder: Path, maps: dict[int, Device]) -> Path:
    """A file with the metadata of a pool that has these devices."""
    lines = [
        '<superblock uuid="" time="1" transaction="1" flags="0" version="2" '
        f'data_block_size="{BLOCK // 512}" nr_data_blocks="{BLOCKS}">'
    ]
    for number, runs in maps.items():
        lines.append(
            f'<device dev_id="{number}" mapped_blocks="{sum(length for _, length, _ in runs)}" '
            'transaction="0" creation_time="0" snap_time="0">'
        )
        start = 0
        for gap, length, data in runs:
            start += gap
            lines.append(
                f'<range_mapping origin_begin="{start}" data_begin="{data}" '
                f'length="{length}" time="0"/>'
            )
            start += length
        lines.append("</device>")
    (folder / "xml").write_text("\n".join([*lines, "</superblock>"]))
    file = folder / "metadata"
    with file.open("wb") as new:
        new.truncate(4 << 20)
    system.run(["thin_restore", "-q", "-i", folder / "xml", "-o", file])
    return file


def runs(file: Path, number: int) -> Iterator[Run]:
    dump = ["thin_dump", "--format", "xml", "--dev-id", str(number), file]
    return thin_maps.parse(system.stream(dump), number)


def delta(file: Path) -> set[int]:
    """The blocks of devices 1 and 2 that differ, as thin_delta says."""
    said = system.run(["thin_delta", "--thin1", "1", "--thin2", "2", file]).stdout
    return {
        block
        for start, length in re.findall(
            r'<(?:different|left_only|right_only) begin="(\d+)" length="(\d+)"', said
        )
        for block in range(int(start), int(start) + int(length))
    }


def blocks(extents: Iterator[Extent]) -> set[int]:
    return {block for start, end in extents for block in range(start // BLOCK, end // BLOCK)}


@settings(max_examples=12)
@given(devices, devices, st.integers(0, 60))
def test_the_maps_agree_with_thin_delta(left: Device, right: Device, shared: int) -> None:
    right = left[:shared] + right[shared:]
    with tempfile.TemporaryDirectory() as folder:
        file = metadata(Path(folder), {1: left, 2: right, 3: []})
        far = 1 << 50
        assert blocks(extent_maps.changed(runs(file, 1), far, runs(file, 2), far)) == delta(file)
        mapped = sum(length for _, length, _ in left)
        assert len(blocks(extent_maps.allocated(runs(file, 1), far))) == mapped
        assert not list(extent_maps.allocated(runs(file, 3), far))
        with pytest.raises(thin_maps.MapUnreadable, match="not there"):
            list(runs(file, 4))
