"""A Swift of which bytes are lost on the way: it is an error, and never a backup."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lunr.backup import errors
from lunr.backup.stores import open_store
from lunr.backup.stores.base import Store
from tests.functional.backup.swift_server import SwiftServer
from tests.unit.backup.support import load_bytes, repository, save_bytes

DATA = b"".join(bytes([number + 1]) * 256 for number in range(6))


@pytest.fixture
def swift() -> Iterator[SwiftServer]:
    with SwiftServer().running() as swift:
        yield swift


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[Store]:
    store = open_store("swift:p", "account", {**swift.options, "retries": 0})
    yield store
    store.close()


@pytest.mark.parametrize("kind", ["sessions/", "chunks/", "segments/", "roots/"])
def test_what_does_not_arrive_whole_makes_no_backup(
    swift: SwiftServer, store: Store, kind: str
) -> None:
    swift.cuts = lambda method, name: method == "PUT" and name.startswith(kind)
    with pytest.raises(errors.StoreUnavailable, match=f"{kind}.* did not arrive whole"):
        save_bytes(repository(store), DATA, "b")
    with pytest.raises((errors.BackupMissing, errors.CorruptObject)):
        load_bytes(repository(store), "b")


@pytest.mark.parametrize("length", [None, 5])
def test_an_answer_that_is_cut_short_is_an_error(
    swift: SwiftServer, store: Store, length: int | None
) -> None:
    store.put("chunks/x", b"content")
    assert store.get("chunks/x", 0, length) == b"content"[:length]
    swift.cuts = lambda method, _: method == "GET"
    with pytest.raises(errors.StoreUnavailable):
        store.get("chunks/x", 0, length)
    swift.cuts = lambda _method, _name: False
    assert store.get("chunks/x", 0, length) == b"content"[:length]
