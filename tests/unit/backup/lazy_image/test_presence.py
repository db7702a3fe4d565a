"""The map against a model: a set of units."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lunr.backup.lazy_image.presence import ABSENT, PARTIAL, PRESENT, UNIT, ChunkLayout, Presence
from tests.support.thorough import examples


class Map(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 40 * UNIT),
        chunk=st.sampled_from([UNIT, 3 * UNIT, 8 * UNIT, 11 * UNIT, 32 * UNIT]),
        base=st.integers(0, 9),
    )
    def start(self, size: int, chunk: int, base: int) -> None:
        self.shape = ChunkLayout(size, chunk)
        self.base = base
        self.area = bytearray(base + self.shape.area)
        self.told = set[int]()
        self.presence = Presence(self.shape, self.area, base, self.changed)
        self.units = -(-size // UNIT)
        self.model = set[int]()

    def changed(self, start: int, end: int) -> None:
        assert 0 <= start < end <= self.shape.area
        self.told.update(range(start, end))

    def per_chunk(self) -> int:
        return self.shape.chunk // UNIT

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.units - 1))
        end = data.draw(st.integers(first + 1, self.units))
        before = bytes(self.area)
        self.told = set()
        for chunk, low, high in self.shape.pieces(first * UNIT, min(end * UNIT, self.shape.size)):
            self.presence.add(chunk, low, high)
        self.model.update(range(first, end))
        changed = {
            i - self.base
            for i, pair in enumerate(zip(before, self.area, strict=True))
            if pair[0] != pair[1]
        }
        # A chunk that is PARTIAL now need not be told: its bits tell it.
        partial = {
            i for i in changed if i < self.shape.chunks and self.presence.state(i) == PARTIAL
        }
        assert changed - partial <= self.told

    @rule(data=st.data())
    def add_chunks(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.shape.chunks - 1))
        end = data.draw(st.integers(first + 1, self.shape.chunks))
        self.presence.add_chunks(first, end)
        per = self.per_chunk()
        self.model.update(range(first * per, min(end * per, self.units)))

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.shape.size - 1))
        end = data.draw(st.integers(start + 1, self.shape.size))
        wanted = set(range(start // UNIT, -(-end // UNIT)))
        assert self.presence.has(start, end) == (wanted <= self.model)
        found = {
            chunk * self.per_chunk() + unit
            for chunk, first, last in self.shape.pieces(start, end)
            for low, high in self.presence.absent(chunk, first, last)
            for unit in range(low, high)
        }
        assert found == wanted - self.model

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        chunk = data.draw(st.integers(0, self.shape.chunks - 1))
        states = [self.presence.state(number) for number in range(self.shape.chunks)]
        rest = [n for n in range(chunk, self.shape.chunks) if states[n] != PRESENT]
        assert self.presence.find_incomplete(chunk) == (rest[0] if rest else None)

    @invariant()
    def is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        per = self.per_chunk()
        for chunk in range(self.shape.chunks):
            mine = set(range(chunk * per, min((chunk + 1) * per, self.units)))
            there = mine & self.model
            expected = PRESENT if there == mine else PARTIAL if there else ABSENT
            assert self.presence.state(chunk) == expected
        assert self.presence.complete == (len(self.model) == self.units)
        extents = list(self.presence.absent_extents())
        absent = {
            unit for offset, end in extents for unit in range(offset // UNIT, -(-end // UNIT))
        }
        assert absent == set(range(self.units)) - self.model
        ends = [end for _, end in extents]
        assert all(end < extent[0] for end, extent in zip(ends, extents[1:], strict=False))
        assert all(end <= self.shape.size for end in ends)
        again = Presence(self.shape, self.area, self.base)
        assert again.present == self.presence.present


Map.TestCase.settings = settings(max_examples=examples(25, 600), stateful_step_count=25)
TestMap = Map.TestCase


@given(st.integers(1, 1 << 44), st.sampled_from([UNIT, 32 * UNIT, 1024 * UNIT]))
def test_pieces_are_the_range(size: int, chunk: int) -> None:
    shape = ChunkLayout(size, chunk)
    offset = size // 3
    end = min(offset + 5 * chunk + 17, size)
    at = offset // UNIT * UNIT
    for number, first, last in shape.pieces(offset, end):
        assert number * chunk + first * UNIT == at
        assert 0 <= first < last <= shape.units(number)
        at = number * chunk + last * UNIT
    assert at >= end > at - UNIT


def test_what_can_not_be_noted_is_not() -> None:
    def full(_start: int, _end: int) -> None:
        raise OSError(28, "full")

    shape = ChunkLayout(64 * UNIT, 32 * UNIT)
    presence = Presence(shape, bytearray(shape.area), 0, full)
    with pytest.raises(OSError, match="full"):
        presence.add(0, 3, 4)
    with pytest.raises(OSError, match="full"):
        presence.add(1, 0, 32)
    assert list(presence.absent_extents()) == [(0, 64 * UNIT)]


@pytest.mark.parametrize(("size", "chunk"), [(0, UNIT), (-1, UNIT), (5, 0), (5, UNIT + 1)])
def test_a_shape_makes_sense(size: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="can't be cut"):
        ChunkLayout(size, chunk)


def test_ten_tebibytes_are_small() -> None:
    shape = ChunkLayout(10 << 40, 4 << 20)
    assert shape.chunks == 2621440
    assert shape.bits == 128
