"""What a collection finds, condemns and tells, when others save and die around it."""

from __future__ import annotations

from collections import Counter

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Kind
from lunr.backup.repository import collect as garbage
from lunr.backup.repository import pending_deletion
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import LunrError
from tests.unit.backup.support import SMALL, Faulty, load_bytes, repository, save_bytes

DATA = bytes(number % 251 + 1 for number in range(9 * SMALL.chunk))


class Killed(BaseException):
    pass


def _collect_and_die(store: MemoryStore) -> str:
    """A collection that stores its list and does not live to tell; its id."""
    repo = repository(store)

    class Deadly(Faulty):
        def put(self, name: str, *buffers, **options) -> None:  # type: ignore[no-untyped-def]
            super().put(name, *buffers, **options)
            if name.startswith("condemned/"):
                raise Killed

    with pytest.raises(Killed):
        garbage.collect(repository(Deadly(store, lambda _call, _name: None)), threads=1)
    (collection,) = pending_deletion.listed(repo)
    return collection


def test_the_list_of_one_that_was_killed_is_told_by_the_next() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, DATA, "b1")
    repo.delete_root("b1")
    lost = _collect_and_die(store)
    assert garbage.collect(repo) == garbage.MarkResult(None, 0, (lost,))
    save_bytes(repo, b"x" * 300, "b2")
    repo.delete_root("b2")
    second = garbage.collect(repo)
    assert second.unswept == (lost,)
    assert second.collection is not None
    for collection in (lost, second.collection):
        assert garbage.sweep(repo, collection).deleted
    assert garbage.collect(repo) == garbage.MarkResult(None, 0)
    assert not store.objects


def test_one_that_was_swept_is_not_told_again() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, DATA, "b1")
    root = store.objects["roots/b1"]
    repo.delete_root("b1")
    found = garbage.collect(repo)
    assert found.collection is not None
    store.objects["roots/b1"] = root
    assert garbage.sweep(repo, found.collection).deleted == 0
    assert garbage.collect(repo) == garbage.MarkResult(None, 0)
    assert load_bytes(repo, "b1") == DATA


def test_a_list_that_can_not_be_read_is_told_so_that_its_sweep_drops_it() -> None:
    store = MemoryStore()
    repo = repository(store)
    store.objects["condemned/c1"] = b"rotten"
    with pytest.raises(LunrError, match="condemned/c1"):
        save_bytes(repo, DATA, "b1")
    assert garbage.collect(repo).unswept == ("c1",)
    garbage.sweep(repo, "c1")
    save_bytes(repo, DATA, "b1")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/roots/sunday", "chunks/../x", ""])
def test_a_list_of_names_that_are_no_objects_is_not_believed(name: str) -> None:
    repo = repository(MemoryStore())
    pending_deletion.store(
        repo, "forged", pending_deletion.PendingDeletion(0.0, {"chunks/aa/b": 1, name: 1}, ())
    )
    with pytest.raises(errors.CorruptObject, match="condemned/forged"):
        pending_deletion.load(repo, "forged")


def test_what_is_saved_while_a_collection_looks_around_is_not_condemned() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, b"old" * 300, "b0")
    repo.delete_root("b0")

    def meddle(call: str, name: str) -> None:
        # It has looked at sessions and roots, and lists all there is next.
        if (call, name) == ("list", ""):
            save_bytes(repo, DATA, "b1")

    found = garbage.collect(repository(Faulty(store, meddle)), threads=1)
    assert found.collection is not None
    listed = pending_deletion.load(repo, found.collection)
    assert listed is not None
    root = repo.load_root("b1")
    assert root.segments[0] is not None
    assert not any(name.endswith(root.segments[0].token.hex()) for name in listed.objects)
    garbage.sweep(repo, found.collection)
    assert pending_deletion.listed(repo) == []
    # So the next backup builds upon that one, and reads nothing of it.
    asked: Counter[str] = Counter()
    counting = Faulty(store, lambda call, name: asked.update([f"{call} {name[:8]}"]))
    same = save_bytes(repository(counting), DATA, "b2", "b1", changed=[])
    assert same.statistics.objects_stored == 0
    assert asked["get segments"] == 0


def test_garbage_of_a_save_that_failed_before_is_condemned_at_once() -> None:
    store = MemoryStore()
    repo = repository(store)

    def fail(call: str, name: str) -> None:
        if (call, name) == ("put", "roots/b1"):
            raise Killed

    with pytest.raises(Killed):
        save_bytes(repository(Faulty(store, fail)), DATA, "b1")
    assert garbage.collect(repo, grace=100.0).condemned == 9 + 3


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("what", [Kind.CHUNK, Kind.SEGMENT])
def test_an_unchanged_segment_of_which_something_is_condemned_is_stored_anew(
    what: Kind, concurrency: int
) -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, DATA, "b1")
    name = next(name for name in store.objects if name.startswith(what))
    pending_deletion.store(
        repo, "c1", pending_deletion.PendingDeletion(repo.clock(), {name: 1}, ())
    )
    same = save_bytes(repo, DATA, "b2", "b1", changed=[], concurrency=concurrency)
    # The two others are the parent's, as before.
    assert len(set(same.segments) & set(repo.load_root("b1").segments)) == 2
    assert same.statistics.objects_stored == (2 if what is Kind.CHUNK else 1)
    repo.delete_root("b1")
    store.objects.pop(name)
    assert load_bytes(repo, "b2") == DATA
