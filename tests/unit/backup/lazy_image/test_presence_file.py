"""The two files of the map: what they hold, what they refuse, what they cost."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lunr.backup.lazy_image import presence_file
from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.presence import PRESENT, UNIT, ChunkLayout, area_with, area_without
from tests.support.thorough import examples

#: 1250 chunks, 8 sectors.
SHAPE = ChunkLayout(20000 * UNIT - 100, 16 * UNIT)


class Files:
    def __init__(self, folder: Path, shape: ChunkLayout = SHAPE) -> None:
        self.map, self.live = folder / "map", folder / "live"
        self.shape = shape

    def create(self, *present: tuple[int, int]) -> None:
        presence_file.create(self.map, self.shape, "b1", area_with(self.shape, present))

    @contextlib.contextmanager
    def open(self) -> Iterator[presence_file.Maps]:
        with contextlib.closing(BackingFile(self.map)) as file:
            opened = presence_file.Maps(file, self.live)
            try:
                yield opened
            finally:
                opened.close()

    def reboot(self) -> None:
        """The live map is of another boot now."""
        with self.live.open("r+b") as file:
            file.seek(40)
            file.write(b"another boot")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def extents(opened: presence_file.Maps) -> list[tuple[int, int]]:
    return list(opened.presence.absent_extents())


def test_a_new_map_claims_what_it_was_told(files: Files) -> None:
    files.create((0, 10), (60, 1250))
    with files.open() as opened:
        assert opened.header.shape == SHAPE
        assert opened.header.backup_id == "b1"
        assert not opened.survived
        assert extents(opened) == [(10 * SHAPE.chunk, 60 * SHAPE.chunk)]


def test_what_was_noted_survives_the_process_but_only_flushed_claims_a_reboot(files: Files) -> None:
    files.create()
    with files.open() as opened:
        opened.presence.add(1, 0, 4)
        opened.flush(lambda: None)
        opened.presence.add(2, 3, 5)
        opened.presence.add_chunks(5, 9)
        both = extents(opened)
    with files.open() as opened:
        assert opened.survived
        assert extents(opened) == both
    files.reboot()
    with files.open() as opened:
        assert not opened.survived
        assert extents(opened)[0] == (0, 16 * UNIT)
        assert extents(opened)[1][0] == 20 * UNIT
        assert len(extents(opened)) == 2


def test_after_a_kill_the_first_flush_claims_all(files: Files) -> None:
    files.create()
    with files.open() as opened:
        opened.presence.add(2, 3, 5)
        opened.presence.add_chunks(5, 9)
        all_ = extents(opened)
    with files.open() as opened:
        opened.flush(lambda: None)
    files.reboot()
    with files.open() as opened:
        assert extents(opened) == all_


def test_claims_are_taken_before_the_data_is_synced(files: Files) -> None:
    files.create()
    with files.open() as opened:
        opened.presence.add(1, 0, 4)
        opened.flush(lambda: opened.presence.add(2, 0, 4))  # written while the sync went on
    files.reboot()
    with files.open() as opened:
        assert opened.presence.has(16 * UNIT, 20 * UNIT)
        assert not opened.presence.has(32 * UNIT, 36 * UNIT)


def test_when_the_data_can_not_be_synced_nothing_is_claimed(files: Files) -> None:
    def fail() -> None:
        raise OSError(5, "no")

    files.create()
    with files.open() as opened:
        opened.presence.add(1, 0, 4)
        before = files.map.read_bytes()
        with pytest.raises(OSError, match="no"):
            opened.flush(fail)
        assert files.map.read_bytes() == before
        opened.flush(lambda: None)  # and it is not forgotten
    files.reboot()
    with files.open() as opened:
        assert opened.presence.has(16 * UNIT, 20 * UNIT)


def test_a_live_map_of_another_volume_is_not_believed(files: Files) -> None:
    files.create()
    with files.open() as opened:
        opened.presence.add_chunks(0, 1250)
    files.create()  # the volume was made anew
    with files.open() as opened:
        assert not opened.survived
        assert extents(opened) == [(0, SHAPE.size)]


def test_two_can_not_have_it(files: Files) -> None:
    files.create()
    with files.open(), pytest.raises(presence_file.MapInUse), files.open():
        pass


def test_a_sector_that_changed_is_seen(files: Files) -> None:
    files.create()
    with files.open() as opened:
        for chunk in range(0, 1250, 20):
            opened.presence.add(chunk, 0, 3)
        opened.flush(lambda: None)
    good = files.map.read_bytes()
    rng = random.Random(7)
    written = [at for at in range(len(good)) if any(good[at // 512 * 512 :][:512])]
    for _ in range(200):
        at = rng.choice(written)
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        files.map.write_bytes(bad)
        files.live.unlink(missing_ok=True)
        with pytest.raises(presence_file.MapCorrupt) as caught, files.open():
            pass
        assert str(files.map) in str(caught.value)


def test_sectors_that_changed_places_are_seen(files: Files) -> None:
    files.create((0, 3))
    with files.open() as opened:
        opened.presence.add(1000, 0, 3)
        opened.flush(lambda: None)
    raw = bytearray(files.map.read_bytes())
    first, second = raw[512:1024], raw[3072:3584]
    raw[512:1024], raw[3072:3584] = second, first
    files.map.write_bytes(raw)
    files.live.unlink()
    with pytest.raises(presence_file.MapCorrupt), files.open():
        pass


@pytest.mark.parametrize("change", [lambda raw: raw[:-512], lambda raw: raw + bytes(512)])
def test_a_map_of_another_length_is_seen(files: Files, change: object) -> None:
    files.create()
    files.map.write_bytes(change(files.map.read_bytes()))  # type: ignore[operator]
    with pytest.raises(presence_file.MapCorrupt), files.open():
        pass


@settings(max_examples=examples(12, 400))
@given(data=st.data())
def test_any_mix_of_old_and_new_sectors_claims_no_more_than_the_truth(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = Files(tmp_path_factory.mktemp("mix"))
    files.create()
    states = [files.map.read_bytes()]
    truths = []
    adds = st.tuples(st.integers(0, 1248), st.integers(0, 15), st.integers(1, 16))
    for _ in range(3):
        with files.open() as opened:
            for chunk, first, count in data.draw(st.lists(adds, min_size=1, max_size=30)):
                opened.presence.add(chunk, first, min(first + count, 16))
            opened.flush(lambda: None)
            truths.append(extents(opened))
        states.append(files.map.read_bytes())
    rng = data.draw(st.randoms())
    mixed = b"".join(rng.choice(states[2:])[at : at + 512] for at in range(0, len(states[0]), 512))
    files.map.write_bytes(mixed)
    files.live.unlink()
    with files.open() as opened:
        found = _units(extents(opened))
    assert found >= _units(truths[2])  # absent in the end: absent in the mix
    assert found <= _units(truths[1])  # what had been synced before is there


def _units(found: list[tuple[int, int]]) -> set[int]:
    return {unit for offset, end in found for unit in range(offset // UNIT, -(-end // UNIT))}


@settings(max_examples=examples(30, 600))
@given(
    edges=st.lists(st.integers(0, 20000), unique=True, max_size=40).map(sorted),
    more=st.sampled_from([0, 3 * UNIT, 40 * UNIT]),
)
def test_a_map_without_some_extents_lacks_just_these(
    edges: list[int], more: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    absent = [
        (first * UNIT, min(end * UNIT, SHAPE.size))
        for first, end in zip(edges[::2], edges[1::2], strict=False)
        if first * UNIT < SHAPE.size
    ]
    files = Files(tmp_path_factory.mktemp("gaps"), ChunkLayout(SHAPE.size + more, SHAPE.chunk))
    presence_file.create(files.map, files.shape, "b1", area_without(files.shape, absent))
    with files.open() as opened:
        wanted = {unit for start, end in absent for unit in range(start // UNIT, -(-end // UNIT))}
        assert _units(extents(opened)) == wanted
        chunks = {unit * UNIT // SHAPE.chunk for unit in wanted}
        assert opened.presence.present == files.shape.chunks - len(chunks)


def test_ten_tebibytes_cost_little(tmp_path: Path) -> None:
    files = Files(tmp_path, ChunkLayout(10 << 40, 4 << 20))
    files.create((1000, 2_000_000))
    with files.open() as opened:
        assert opened.presence.present == 1_999_000
        for chunk in range(0, 1000, 10):
            opened.presence.add(chunk, 5, 9)
        opened.flush(lambda: None)
        used = sum(os.stat(path).st_blocks * 512 for path in (files.map, files.live))
        assert used < 12 << 20
    files.reboot()
    with files.open() as opened:
        assert opened.presence.state(2_000_000 - 1) == PRESENT
        assert opened.presence.has(5 * UNIT, 9 * UNIT)
        assert not opened.presence.has(4 * UNIT, 9 * UNIT)
