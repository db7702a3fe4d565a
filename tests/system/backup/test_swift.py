"""The engine against a real Swift."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Geometry
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.verify import verify
from lunr.backup.save.save import Backup, save
from lunr.backup.stores import open_store
from lunr.backup.stores.base import Store
from tests.support.faults.relay import MortalSwift
from tests.support.services import SwiftAccess
from tests.support.waiting import PATIENCE
from tests.unit.backup.stores.contract import StoreContract
from tests.unit.backup.support import MemorySource, load_bytes, repository, save_bytes

GEOMETRY = Geometry(block=4096, chunk=65536, segment_chunks=16)


@pytest.fixture
def place() -> str:
    """A container's prefix that nobody else uses."""
    return f"swift:test-{uuid.uuid4().hex[:12]}"


class TestSwift(StoreContract):
    @pytest.fixture
    def store(self, swift_cluster: SwiftAccess, place: str) -> Iterator[Store]:
        store = open_store(place, "account", dict(swift_cluster))
        yield store
        store.close()


def test_the_life_of_a_backup(swift_cluster: SwiftAccess, place: str) -> None:
    store = open_store(place, "account", dict(swift_cluster))
    repo = repository(store)
    data = os.urandom(65536 * 20) + bytes(65536 * 20) + b"end"
    save_bytes(repo, data, "b1", geometry=GEOMETRY, concurrency=4)
    changed = bytes([data[0] ^ 1]) + data[1:]
    did = save_bytes(repo, changed, "b2", "b1", geometry=GEOMETRY, concurrency=4)
    assert did.statistics.objects_stored == 2
    assert load_bytes(repo, "b1") == data
    assert load_bytes(repo, "b2") == changed
    assert verify(repo, concurrency=4).damaged == {}
    repo.delete_root("b1")
    repo.delete_root("b2")
    found = collect(repo)
    assert found.collection is not None
    sweep(repo, found.collection)
    collect(repo)
    assert list(store.list()) == []
    store.close()


def test_a_wrong_password_is_told(swift_cluster: SwiftAccess, place: str) -> None:
    store = open_store(place, "account", {**swift_cluster, "key": "wrong"})
    with pytest.raises(errors.StoreRefused, match="credentials"):
        store.get("roots/b")
    store.close()


def test_nobody_listens(place: str) -> None:
    options = {"auth_url": "http://127.0.0.1:1/auth/v1.0", "user": "u", "key": "k", "retries": 1}
    store = open_store(place, "account", options)
    with pytest.raises(errors.StoreUnavailable, match="swift:test-"):
        store.get("roots/b")
    store.close()


class _Gate(MemorySource):
    """Bytes of which the second half is only read when `go` is set."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, chunk=GEOMETRY.chunk)
        self.half = threading.Event()
        self.go = threading.Event()

    def read(self, buffer, offset, length):  # type: ignore[no-untyped-def]
        if offset >= self.size // 2:
            self.half.set()
            self.go.wait(PATIENCE)
        return super().read(buffer, offset, length)


@pytest.mark.parametrize("returns", [True, False])
def test_swift_goes_away_in_the_middle(
    mortal_swift: MortalSwift, place: str, returns: bool
) -> None:
    options = {**mortal_swift.access, "retries": 6 if returns else 1, "timeout": 5}
    data = os.urandom(GEOMETRY.chunk * 20)
    source = _Gate(data)
    store = open_store(place, "account", options)
    repo = repository(store)
    ends: list[BaseException | None] = []

    def work() -> None:
        try:
            save(repo, source, Backup("b", "v", "now", geometry=GEOMETRY))
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert source.half.wait(PATIENCE)
    mortal_swift.kill()
    source.go.set()
    if returns:
        mortal_swift.start()
        thread.join(PATIENCE)
        assert ends == [None]
    else:
        thread.join(PATIENCE)
        assert isinstance(ends[0], errors.StoreUnavailable)
        mortal_swift.start()
    fresh = repository(open_store(place, "account", dict(mortal_swift.access)))
    if returns:
        assert load_bytes(fresh, "b") == data
    else:
        assert list(fresh.backup_ids()) == []
    store.close()
    fresh.store.close()
