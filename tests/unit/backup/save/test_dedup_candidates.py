"""What another backup of the account has is not stored again, and costs no requests to find out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Geometry, Kind, Ref
from lunr.backup.format.segments import Patched
from lunr.backup.keys import derive
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import verify
from lunr.backup.save import save
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import KEYS, SMALL, Faulty, load_bytes, repository, save_bytes
from tests.unit.backup.volume import GEOMETRY, Volume, entries_of

IMAGE = os.urandom(10 * SMALL.chunk + 70)


def _counting(store: MemoryStore) -> tuple[Repository, Counter[str]]:
    """A repository, and what is asked of it."""
    asked: Counter[str] = Counter()
    counting = Faulty(
        store, lambda call, name: asked.update([f"{call} {name.partition('/')[0]}".strip()])
    )
    return repository(counting), asked


@pytest.mark.parametrize("concurrency", [1, 4])
def test_two_volumes_of_one_image_store_it_once(concurrency: int) -> None:
    repo = repository()
    save_bytes(repo, IMAGE, "a1", volume_id="a")
    did = save_bytes(
        repo, IMAGE, "b1", volume_id="b", like=("a1",), concurrency=concurrency
    ).statistics
    assert did.objects_stored == 3  # its segments
    assert len(list(repo.store.list("chunks/"))) == 11
    assert load_bytes(repo, "b1") == IMAGE
    repo.delete_root("a1")
    found = collect(repo)
    assert found.collection is not None
    sweep(repo, found.collection)
    assert load_bytes(repo, "b1") == IMAGE


def test_where_in_the_volume_it_is_makes_no_difference() -> None:
    repo = repository()
    save_bytes(repo, IMAGE[: 8 * SMALL.chunk], "a1", volume_id="a")
    shifted = bytes(3 * SMALL.chunk) + IMAGE[: 8 * SMALL.chunk]
    did = save_bytes(repo, shifted, "b1", volume_id="b", like=("a1",)).statistics
    assert did.objects_stored == 3
    assert load_bytes(repo, "b1") == shifted


def test_with_known_changes_only_what_changed_is_read_and_nothing_stored() -> None:
    volume = Volume()
    image = os.urandom(3 * GEOMETRY.chunk)
    save_bytes(volume.repo, image, "other", volume_id="other", geometry=GEOMETRY)
    volume.data[GEOMETRY.chunk : 4 * GEOMETRY.chunk] = image
    did = volume.save([(GEOMETRY.chunk, 4 * GEOMETRY.chunk)], like=("other",))
    assert did.bytes_read == len(image)
    assert did.objects_stored == 1  # the segment


def test_a_chunk_that_was_copied_within_the_volume_is_not_stored_again() -> None:
    volume = Volume()
    chunk = GEOMETRY.chunk
    volume.data[6 * chunk : 7 * chunk] = volume.data[chunk : 2 * chunk]
    did = volume.save([(6 * chunk, 7 * chunk)])
    assert (did.bytes_read, did.objects_stored) == (chunk, 1)


def test_the_base_of_a_patched_chunk_is_known_by_what_it_holds() -> None:
    volume = Volume()
    was = bytes(volume.data)
    volume.write(2, 3)
    volume.save()
    assert isinstance(entries_of(volume.repo, "b1")[2], Patched)
    volume.repo.delete_root("b0")
    did = save_bytes(volume.repo, was, "other", volume_id="o", geometry=GEOMETRY, like=("b1",))
    assert did.statistics.objects_stored == 2  # segments
    assert load_bytes(volume.repo, "other") == was


def test_no_request_for_what_is_not_stored() -> None:
    store = MemoryStore()
    save_bytes(repository(store), IMAGE, "a1", volume_id="a")
    save_bytes(repository(store), IMAGE, "b1", volume_id="b")
    repo, asked = _counting(store)
    save_bytes(repo, IMAGE, "b2", "b1", volume_id="b", like=("a1",))
    always = asked["get roots"]
    assert asked["get segments"] == 3, "the parent's, once each; none of the other's"
    assert asked["get chunks"] == asked["get patches"] == asked["put chunks"] == 0
    asked.clear()
    save_bytes(repo, IMAGE, "b3", "b2", volume_id="b", like=("a1",), changed=[])
    assert asked["get segments"] == asked["get chunks"] == asked["get patches"] == 0
    assert asked["get roots"] == always
    asked.clear()
    save_bytes(repo, IMAGE, "c1", volume_id="c", like=("a1", "b3"))
    assert asked["get segments"] == 3 + 3, "those of both, once each"
    assert asked["get roots"] == always - 1 + 2
    assert asked["get chunks"] == asked["put chunks"] == 0
    assert asked["list chunks"] == asked["list"] == 0


def test_an_incremental_of_patches_asks_nothing_of_others() -> None:
    volume = Volume()
    save_bytes(volume.repo, IMAGE, "other", volume_id="other", geometry=GEOMETRY)
    volume.write(1, 2)
    counted, asked = _counting(volume.store)
    volume.repo = counted
    save_bytes(
        counted,
        bytes(volume.data),
        "b1",
        "b0",
        geometry=GEOMETRY,
        like=("other",),
        changed=[(GEOMETRY.chunk, 2 * GEOMETRY.chunk)],
    )
    assert (asked["get roots"], asked["get segments"]) == (3, 1)
    assert asked["put patches"] == 1


def test_no_more_than_so_many_segments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "_READ_SEGMENTS", 4)
    monkeypatch.setattr(save, "_READ_SEGMENTS_IF_FEW_CHANGED", 2)
    store = MemoryStore()
    for name in "abc":
        save_bytes(repository(store), os.urandom(len(IMAGE)), f"{name}1", volume_id=name)
    repo, asked = _counting(store)
    save_bytes(repo, IMAGE, "new", volume_id="d", like=("a1", "b1", "c1"))
    assert asked["get segments"] == 4
    asked.clear()
    changed = os.urandom(SMALL.chunk) + IMAGE[SMALL.chunk :]
    save_bytes(repo, changed, "next", "new", like=("a1",), changed=[(0, SMALL.chunk)])
    assert asked["get segments"] == 1 + 2


def test_backups_that_can_not_be_used_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    repo = repository(store)
    other = derive.derive(bytes(32), "default")
    save_bytes(Repository(store, other), IMAGE, "rotated", volume_id="a")
    save_bytes(repo, IMAGE, "cut", volume_id="a", geometry=Geometry(64, 512, 4))
    lost = save_bytes(repo, IMAGE, "lost", volume_id="a").segments
    for ref in lost:
        assert ref is not None
        store.objects[ref.name(Kind.SEGMENT)] = b"rotten"
    save_bytes(repo, IMAGE, "good", volume_id="a")
    like = ("none", "rotated", "cut", "lost", "good")
    repo = Repository(store, KEYS, older=[other])
    caplog.clear()
    did = save_bytes(repo, IMAGE, "b1", volume_id="b", like=like)
    assert did.statistics.objects_stored == 3
    assert load_bytes(repo, "b1") == IMAGE
    told = [record.message for record in caplog.records]
    assert len(told) == 4
    for name, line in zip(like, told, strict=False):
        assert f"Backup {name} " in line


def test_a_damaged_object_of_another_backup_is_not_referred_to() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, IMAGE, "a1", volume_id="a")
    bad = entries_of(repo, "a1")[4]
    assert isinstance(bad, Ref)
    store.objects[bad.name(Kind.CHUNK)] = b"rotten"
    assert verify(repo).damaged
    did = save_bytes(repo, IMAGE, "b1", volume_id="b", like=("a1",)).statistics
    assert did.objects_stored == 1 + 3
    assert load_bytes(repo, "b1") == IMAGE


def test_nothing_condemned_is_referred_to() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, IMAGE, "a1", volume_id="a")
    root = repo.load_root("a1")
    repo.delete_root("a1")
    found = collect(repo)
    assert found.collection is not None
    repo.store_root(replace(root))  # as one that a listing and the service did not know of
    did = save_bytes(repo, IMAGE, "b1", volume_id="b", like=("a1",)).statistics
    assert did.objects_stored == 11 + 3
    repo.delete_root("a1")
    assert sweep(repo, found.collection).deleted == found.condemned
    assert load_bytes(repo, "b1") == IMAGE


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_another_backup_is_deleted_and_collected_in_the_middle_of_a_save(known: bool) -> None:
    # Whether the save knows the list or not: what it refers to stays.
    store = MemoryStore()
    direct = repository(store)
    save_bytes(direct, IMAGE, "a1", volume_id="a")
    found: list[str] = []

    def remove() -> None:
        direct.delete_root("a1")
        collected = collect(direct, threads=1)
        assert collected.collection is not None
        found.append(collected.collection)
        if not known:
            with pytest.raises(errors.SavesRunning):
                sweep(direct, found[0], threads=1)

    def meddle(call: str, name: str) -> None:
        if (call, name.partition("/")[0]) == ("put", "segments") and not found:
            remove()

    if known:
        remove()
    save_bytes(repository(Faulty(store, meddle)), IMAGE, "b1", volume_id="b", like=("a1",))
    sweep(direct, found[0], threads=1)
    assert load_bytes(direct, "b1") == IMAGE
    assert verify(direct).damaged == {}
