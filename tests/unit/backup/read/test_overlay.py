"""A volume that is not all there is saved as if it were, whatever is missing."""

from __future__ import annotations

import mmap
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.read.backup_reader import Source as Stored
from lunr.backup.read.overlay import Overlay
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.memory import MemoryStore
from lunr.common.extents import Extents
from tests.support.thorough import examples
from tests.unit.backup.support import (
    SMALL,
    FailAfter,
    Faulty,
    MemorySource,
    load_bytes,
    repository,
    save_bytes,
)

SIZE = 9 * SMALL.chunk + 100
#: Smaller than a block: what is written need not be whole blocks.
UNIT = 16


def ignore(event: str, **fields: object) -> None:
    """Nobody wants to know."""


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    edges = sorted(draw(st.sets(st.integers(0, SIZE // UNIT), max_size=24)))
    pairs = zip(edges[::2], edges[1::2], strict=False)
    return [(first * UNIT, end * UNIT) for first, end in pairs]


def between(absent: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for one in absent for edge in one), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


@settings(max_examples=examples(40, 1500))
@given(
    absent=ranges(),
    seed=st.integers(0, 1 << 30),
    more=st.sampled_from([0, 10, 3 * SMALL.chunk]),
    parent=st.sampled_from(["base", "other", None]),
    garbage=st.booleans(),
)
def test_it_is_saved_whole(
    absent: list[tuple[int, int]], seed: int, more: int, parent: str | None, garbage: bool
) -> None:
    rng = random.Random(seed)
    base = bytearray(rng.randbytes(SIZE))
    base[2 * SMALL.chunk : 4 * SMALL.chunk] = bytes(2 * SMALL.chunk)
    repo = repository(MemoryStore())
    save_bytes(repo, bytes(base), "base")
    save_bytes(repo, rng.randbytes(SIZE), "other")
    whole = bytearray(base + bytes(more))
    for start, end in between(absent, len(whole)):
        if rng.random() < 0.5:  # written since, or only fetched
            whole[start:end] = rng.randbytes(end - start)
    local = bytearray(whole)
    for start, end in absent:
        local[start:end] = rng.randbytes(end - start) if garbage else bytes(end - start)
    stored = Stored(repo, repo.load_root("base"), ignore)
    source = Overlay(MemorySource(bytes(local), holes=not garbage), Extents(absent), stored)
    save(
        repo,
        source,
        Backup(
            backup_id="new",
            volume_id="v2",
            created_at="2026-11-23T12:00:00Z",
            parent_id=parent,
            changed=between(absent, len(whole)) if parent == "base" else None,
            geometry=SMALL,
        ),
        concurrency=1,
    )
    assert load_bytes(repo, "new") == whole


def test_what_is_absent_is_not_fetched_to_be_saved() -> None:
    store = Faulty(MemoryStore(), lambda *_: None)
    repo = repository(store)
    save_bytes(repo, random.Random(1).randbytes(SIZE), "base")
    absent = [(SMALL.chunk, 8 * SMALL.chunk)]
    stored = Stored(repo, repo.load_root("base"), ignore)
    local = load_bytes(repo, "base")[: SMALL.chunk] + bytes(SIZE - SMALL.chunk)
    source = Overlay(MemorySource(local, holes=True), Extents(absent), stored)
    new = Backup(
        backup_id="new",
        volume_id="v2",
        created_at="2026-11-23T12:00:00Z",
        parent_id="base",
        changed=[(0, SMALL.chunk)],
        geometry=SMALL,
    )
    root = save(repo, source, new, concurrency=1)
    assert root.statistics.bytes_read <= 2 * SMALL.chunk


def test_a_store_that_is_away_is_an_error_and_never_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lunr.backup.read.overlay._PATIENCE", 0.05)
    memory = MemoryStore()
    save_bytes(repository(memory), random.Random(1).randbytes(SIZE), "base")
    repo = repository(Faulty(memory, FailAfter(1)))
    stored = Stored(repo, repo.load_root("base"), ignore)
    source = Overlay(MemorySource(bytes(SIZE)), Extents([(0, SIZE)]), stored)
    with pytest.raises(errors.StoreUnavailable):
        source.read(mmap.mmap(-1, SMALL.chunk), 0, SMALL.chunk)
