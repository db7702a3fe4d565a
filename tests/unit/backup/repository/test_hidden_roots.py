"""Collections of a store whose listings do not show yet what was saved."""

from __future__ import annotations

from collections.abc import Iterator

from lunr.backup.repository import collect as garbage
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import Faulty, load_bytes, repository, save_bytes

DATA = b"".join(bytes([number + 1]) * 256 for number in range(6))


class Hiding(MemoryStore):
    """Lists no roots."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return (entry for entry in super().list(prefix) if not entry[0].startswith("roots/"))


def test_what_the_service_knows_of_is_neither_condemned_nor_swept() -> None:
    repo = repository(Hiding())
    save_bytes(repo, DATA, "b")
    garbage.collect(repo, keep=["b"])  # takes away the note that the writer left
    assert garbage.collect(repo, keep=["b", "gone"]).collection is None
    pending_deletion = garbage.collect(repo)
    assert pending_deletion.collection is not None
    assert pending_deletion.condemned > 3
    assert garbage.sweep(repo, pending_deletion.collection, keep=["b"]).deleted == 0
    assert load_bytes(repo, "b") == DATA


def test_what_was_being_saved_as_something_was_condemned_is_looked_at_before_it_is_swept() -> None:
    store = Hiding()
    repo = repository(store)
    save_bytes(repo, DATA, "first")
    garbage.collect(repo, keep=["first"])
    collections = []

    def condemn(call: str, name: str) -> None:
        if (call, name) == ("put", "roots/second"):
            repo.delete_root("first")
            collections.append(garbage.collect(repo).collection)

    save_bytes(repository(Faulty(store, condemn)), DATA, "second", "first")
    garbage.collect(repo, keep=["second"])  # takes away the note
    assert not [name for name in store.objects if name.startswith("sessions/")]
    (collection,) = collections
    assert collection is not None
    garbage.sweep(repo, collection)
    assert load_bytes(repo, "second") == DATA
