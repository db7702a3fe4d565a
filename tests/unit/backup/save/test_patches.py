"""What is stored when few blocks of a chunk changed, and how it is read."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.format.names import Geometry, Ref
from lunr.backup.format.segments import (
    Patched,
    Piece,
    Place,
    objects_of,
    pieces_of,
    places_of,
)
from lunr.backup.read.plan import load_range
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import verify
from lunr.backup.save import patch_packer
from lunr.backup.save.patch_rewrite_policy import is_written_whole, patches_to_rewrite
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import (
    FailAfter,
    Faulty,
    load_bytes,
    load_chunk,
    repository,
    save_bytes,
)
from tests.unit.backup.volume import CHUNKS, GEOMETRY, Volume, entries_of, entry_of

REF = Ref(b"h" * 32, b"t" * 8)


def names(repo: Repository, prefix: str) -> set[str]:
    return {name for name, _ in repo.store.list(prefix)}


# --- what is stored ----------------------------------------------------------------------


def test_the_changed_blocks_of_many_chunks_are_one_object() -> None:
    volume = Volume()
    before = names(volume.repo, "chunks/")
    for chunk in range(4):
        volume.write(chunk, 3 * chunk)
    did = volume.save()
    assert did.objects_stored == 2  # a patch and a segment
    assert names(volume.repo, "chunks/") == before
    assert len(names(volume.repo, "patches/")) == 1
    pieces = [piece for chunk in range(4) for piece in volume.newest(chunk).pieces]
    # In the order of the volume:
    assert [(piece.first, piece.first_in_patch) for piece in pieces] == [
        (0, 0),
        (3, 1),
        (6, 2),
        (9, 3),
    ]
    assert entries_of(volume.repo, "b1")[4:] == entries_of(volume.repo, "b0")[4:]


def test_a_patch_object_is_no_larger_than_a_chunk() -> None:
    volume = Volume()
    for chunk in range(4):
        volume.write(chunk, 0, 9)
    assert volume.save().objects_stored == 4  # 36 blocks in objects of 16, and a segment
    sizes = [size for name, size in volume.repo.store.list("patches/")]
    full = max(size for name, size in volume.repo.store.list("chunks/"))
    assert max(sizes) <= full


def test_neighbours_are_one_piece_and_what_is_overwritten_is_dropped() -> None:
    volume = Volume()
    volume.write(1, 2, 4)
    volume.save()
    (piece,) = volume.newest(1).pieces
    assert (piece.first, piece.blocks) == (2, 4)
    volume.write(1, 1, 6)
    volume.save()
    (piece,) = volume.newest(1).pieces
    assert (piece.first, piece.blocks) == (1, 6)
    volume.write(1, 3)
    volume.save()
    assert [(p.first, p.blocks) for p in volume.newest(1).pieces] == [(1, 2), (3, 1), (4, 3)]


def test_zeros_cost_nothing() -> None:
    volume = Volume()
    volume.write(1, 2, 4, zeros=True)
    assert volume.save().objects_stored == 1
    assert volume.newest(1).pieces == (Piece(2, 4, None, 0),)
    volume.write(1, 0, 16, zeros=True)
    volume.write(5, 0, 16, zeros=True)
    volume.save()
    assert entries_of(volume.repo, "b2")[1] is entries_of(volume.repo, "b2")[5] is None
    volume.write(5, 7, 2)
    assert volume.save().objects_stored == 2
    assert volume.newest(5).base is None
    assert [p.first for p in volume.newest(5).pieces] == [7]


def test_a_chunk_of_which_too_much_changed_is_written_whole() -> None:
    volume = Volume()
    volume.write(0, 0, 9)
    volume.save()
    assert len(names(volume.repo, "chunks/")) == CHUNKS
    volume.write(0, 3)
    volume.save()
    assert len(names(volume.repo, "chunks/")) == CHUNKS
    volume.write(0, 12)
    volume.save()
    assert len(names(volume.repo, "chunks/")) == CHUNKS + 1
    assert isinstance(entries_of(volume.repo, "b3")[0], Ref)


def test_what_was_before_is_found_again() -> None:
    volume = Volume()
    first = bytes(volume.data)
    volume.write(2, 2, 3)
    volume.save()
    volume.data[:] = first
    assert volume.save().bytes_stored > 0
    assert entries_of(volume.repo, "b2")[2] != entries_of(volume.repo, "b1")[2]
    assert volume.save().bytes_stored == 0


def test_nothing_is_taken_along_when_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume()
    for block in range(3):
        volume.write(0, 2 * block)
        volume.save()
    monkeypatch.setattr("lunr.backup.save.patch_rewrite_policy._FEW", 1)
    assert volume.save().bytes_stored == 0
    volume.write(1, 0)
    volume.save()
    patches = {name for name in objects_of(*entries_of(volume.repo, "b5")) if "patches" in name}
    assert len(patches) < 4


# --- what can't be built upon ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chunks/", "patches/"])
@pytest.mark.parametrize("know", [True, False])
def test_condemned_objects_are_not_built_upon(kind: str, know: bool) -> None:
    volume = Volume()
    volume.write(0, 1)
    volume.save()
    needed = set(objects_of(entry_of(volume.repo, "b1", 0)))
    (bad,) = (name for name in needed if name.startswith(kind))
    # As if a collection had condemned it while b1 was written:
    root = volume.store.objects["roots/b1"]
    for backup_id in ("b0", "b1"):
        volume.repo.delete_root(backup_id)
    found = collect(volume.repo, threads=1)
    assert found.collection is not None
    volume.store.objects["roots/b1"] = root
    volume.write(0, 5)
    changed = [(5 * GEOMETRY.block, 6 * GEOMETRY.block)] if know else None
    volume.save(changed)
    assert bad not in objects_of(*entries_of(volume.repo, "b2"))


@pytest.mark.parametrize("kind", ["chunks/", "patches/"])
@pytest.mark.parametrize("how", ["gone", "index"])
@pytest.mark.parametrize("know", [True, False])
def test_a_parent_with_a_bad_object_is_healed(
    kind: str, how: str, know: bool, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume()
    volume.write(0, 1)
    volume.save()
    (bad,) = (n for n in objects_of(entry_of(volume.repo, "b1", 0)) if n.startswith(kind))
    if how == "gone":
        del volume.store.objects[bad]
    else:
        raw = volume.store.objects[bad]
        volume.store.objects[bad] = raw[:40] + b"!!!" + raw[43:]
    volume.write(0, 5)
    volume.save([(5 * GEOMETRY.block, 6 * GEOMETRY.block)] if know else None)
    assert isinstance(entries_of(volume.repo, "b2")[0], Ref)
    assert bad in caplog.text
    verify(volume.repo, ["b2"])


def test_a_store_that_fails_at_any_step_makes_no_backup() -> None:
    pristine = Volume()
    for chunk in range(CHUNKS):
        pristine.write(chunk, 2, 5)
    pristine.save()
    for chunk in range(CHUNKS):
        pristine.write(chunk, 1, 3)
    data = bytes(pristine.data)

    def save(store: MemoryStore, faults: FailAfter) -> None:
        repo = repository(Faulty(store, faults))
        save_bytes(repo, data, "next", "b1", geometry=GEOMETRY)

    def copy() -> MemoryStore:
        store = MemoryStore()
        store.objects = dict(pristine.store.objects)
        return store

    counted = FailAfter(1 << 30)
    save(copy(), counted)
    assert counted.calls > 20
    for step in range(counted.calls - 2):  # without the root's own read-back and the last note
        store = copy()
        with pytest.raises(errors.StoreUnavailable):
            save(store, FailAfter(step))
        assert "roots/next" not in store.objects
        assert load_bytes(repository(store), "b1")
        save(store, FailAfter(1 << 30))
        assert load_bytes(repository(store), "next") == data


# --- reading ------------------------------------------------------------------------------------


def test_a_restore_fetches_every_object_once(tmp_path: Path) -> None:
    volume = Volume()
    for number in range(4):
        for chunk in range(CHUNKS):
            volume.write(chunk, 2 * number)
        volume.save()
    asked: Counter[str] = Counter()
    volume.repo.store = Faulty(volume.store, lambda call, name: asked.update([name]))
    restore(volume.repo, "b4", tmp_path / "out", create=True)
    assert (tmp_path / "out").read_bytes() == volume.data
    assert set(asked.values()) == {1}
    assert sum(name.startswith("chunks/") for name in asked) == CHUNKS


def test_few_blocks_of_an_object_are_fetched_alone() -> None:
    geometry = Geometry(block=4096, chunk=32 * 4096, segment_chunks=4)
    repo = repository()
    data = bytearray(os.urandom(geometry.chunk))
    save_bytes(repo, bytes(data), "b0", geometry=geometry)
    data[:4096] = os.urandom(4096)
    save_bytes(repo, bytes(data), "b1", "b0", geometry=geometry)
    (entry,) = entries_of(repo, "b1")
    lengths: list[int] = []
    store = repo.store

    class Measured(Faulty):
        def get(self, name: str, offset: int = 0, length: int | None = None):  # type: ignore[no-untyped-def]
            data = super().get(name, offset, length)
            lengths.append(len(data))
            return data

    repo.store = Measured(store, lambda call, name: None)
    assert load_range(repo, entry, len(data), geometry, range(2)) == data[:8192]
    assert len(lengths) == 4
    assert sum(lengths) < 5 * 4096


def test_pieces_that_do_not_fit_are_corrupt() -> None:
    volume = Volume()
    volume.write(0, 1)
    volume.save()
    good = volume.newest(0)
    (piece,) = good.pieces
    wrong = [
        good._replace(pieces=(piece._replace(first=2),)),
        good._replace(pieces=(piece._replace(first_in_patch=1),)),
        good._replace(pieces=()),
        good._replace(base=None),
        good._replace(pieces=(piece, Piece(3, 1, None, 0))),
    ]
    assert load_chunk(volume.repo, good, GEOMETRY.chunk, GEOMETRY) == volume.data[: GEOMETRY.chunk]
    for entry in wrong:
        with pytest.raises(errors.CorruptObject) as caught:
            load_chunk(volume.repo, entry, GEOMETRY.chunk, GEOMETRY)
        assert any(name in str(caught.value) for name in objects_of(good))


# --- the parts -----------------------------------------------------------------------------


places = st.dictionaries(
    st.integers(0, 40),
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from([REF, REF._replace(token=b"o" * 8)]), st.integers(0, 40)),
    ),
    max_size=30,
)


@given(places)
def test_pieces_say_where_blocks_are(wanted: dict[int, Place]) -> None:
    pieces = pieces_of(wanted)
    assert places_of(Patched(bytes(32), None, pieces)) == wanted
    assert all(
        (a.first + a.blocks, a.patch) != (b.first, b.patch)
        or (a.patch is not None and a.first_in_patch + a.blocks != b.first_in_patch)
        for a, b in itertools.pairwise(pieces)
    )


@given(
    st.dictionaries(st.integers(), st.integers(1, 128), max_size=200),
    st.integers(0, 2000),
    st.integers(1, 150),
)
def test_patch_objects_never_become_too_many(living: dict[int, int], new: int, chunks: int) -> None:
    taken = patches_to_rewrite(living, new, chunks, 128)
    moved = sum(living[one] for one in taken)
    after = len(living) - len(taken) + -(-(new + moved) // 128)
    allowed = max(16, chunks * 9 // 10)
    # Unless there are so many living blocks that no packing can do it: rewriting chunks does.
    assert after <= max(allowed, -(-(new + sum(living.values())) // 128))
    if taken:
        emptiest = sorted(living.values())[: len(taken)]
        assert sorted(living[one] for one in taken) == emptiest


def test_a_chunk_is_written_whole_above_nine_sixteenths() -> None:
    assert [is_written_whole(patched, 128) for patched in (0, 72, 73, 128)] == [0, 0, 1, 1]
    assert [is_written_whole(patched, 1) for patched in (0, 1)] == [False, True]


def test_the_packer_holds_one_object_at_most() -> None:
    stored: list[int] = []

    def store(hashes: list[bytes], data: memoryview) -> Ref:
        assert len(data) == 4 * len(hashes)
        stored.append(len(hashes))
        return Ref(len(stored).to_bytes(32, "big"), bytes(8))

    packer = patch_packer.PatchPacker(10, store)  # type: ignore[arg-type]

    def add(chunk: int) -> None:
        for block in range(30):
            packer.add([patch_packer.PendingBlock(chunk, block, bytes(32), b"data")])
            assert len(packer) < 10

    threads = [threading.Thread(target=add, args=(chunk,)) for chunk in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    packer.add([patch_packer.PendingBlock(9, 0, bytes(32), b"data")])
    packer.flush()
    assert stored == [10] * 12 + [1]
    assert len(set(packer.places.values())) == len(packer.places) == 121
