"""Something that is not Swift answers for it, as a load balancer or a captive portal does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lunr.backup import errors
from lunr.backup.repository.verify import verify
from lunr.backup.stores import open_store, repositories
from lunr.backup.stores.base import Store
from tests.functional.backup.swift_server import SwiftServer
from tests.unit.backup.support import repository, save_bytes

DATA = b"".join(bytes([number + 1]) * 256 for number in range(6))

CALLS: dict[str, Callable[[Store], object]] = {
    "GET": lambda store: store.get("chunks/x"),
    "GET a part": lambda store: store.get("chunks/x", 2, 3),
    "PUT": lambda store: store.put("chunks/x", b"content"),
    "DELETE": lambda store: store.delete("chunks/x"),
    "LIST": lambda store: list(store.list()),
    "AUTH": lambda store: list(store.list()),
}


@pytest.fixture
def swift() -> Iterator[SwiftServer]:
    with SwiftServer().running() as swift:
        yield swift


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[Store]:
    store = open_store("swift:p", "account", {**swift.options, "retries": 0})
    yield store
    store.close()


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("call", CALLS)
def test_a_page_of_something_else_is_no_answer(
    swift: SwiftServer, store: Store, call: str, status: int
) -> None:
    swift.objects.put("chunks/x", b"content")
    method = call.split()[0]
    swift.poses = lambda asked, _: status if asked == method else None
    with pytest.raises(errors.StoreUnavailable):
        CALLS[call](store)
    assert bytes(swift.objects.get("chunks/x")) == b"content"
    swift.poses = lambda _method, _name: None
    CALLS[call](store)


def test_a_page_for_a_while_is_outlasted(swift: SwiftServer) -> None:
    swift.objects.put("chunks/x", b"content")
    asked = 0

    def pose(method: str, _name: str) -> int | None:
        nonlocal asked
        asked += method != "AUTH"
        return 200 if asked < 3 and method != "AUTH" else None

    swift.poses = pose
    store = open_store("swift:p", "account", {**swift.options, "retries": 3})
    assert bytes(store.get("chunks/x")) == b"content"
    store.close()


def test_a_verify_says_nothing_of_backups_that_it_could_not_read(
    swift: SwiftServer, store: Store
) -> None:
    repo = repository(store)
    save_bytes(repo, DATA, "b")
    names = set(dict(swift.objects.list()))
    swift.poses = lambda method, name: 200 if (method, name[:7]) == ("GET", "chunks/") else None
    with pytest.raises(errors.StoreUnavailable, match="not Swift"):
        verify(repo, ["b"])
    assert set(dict(swift.objects.list())) == names, "nothing is set aside"
    swift.poses = lambda _method, _name: None
    assert not verify(repo, ["b"]).damaged


def test_a_listing_of_accounts_is_no_page(swift: SwiftServer) -> None:
    swift.poses = lambda method, _: None if method == "AUTH" else 200
    with pytest.raises(errors.StoreUnavailable, match="not Swift"):
        repositories("swift:p", swift.options)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("call", [call for call in CALLS if call != "AUTH"])
def test_swift_says_when_to_come_again(
    swift: SwiftServer, store: Store, call: str, status: int
) -> None:
    swift.objects.put("chunks/x", b"content")
    swift.failure = (status, {"Retry-After": "17"})
    swift.fails = lambda _method, _name: True
    with pytest.raises(errors.StoreUnavailable) as raised:
        CALLS[call](store)
    assert raised.value.retry_after == 17


@pytest.mark.parametrize(
    "page",
    [{"name": "x"}, [{"name": "x"}], [{"name": 1, "bytes": 1}], [{"name": "x", "bytes": -1}]],
)
def test_a_listing_of_something_else_is_no_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch, page: object
) -> None:
    import swiftclient

    monkeypatch.setattr(swiftclient.Connection, "get_container", lambda *_, **__: ({}, page))
    with pytest.raises(errors.StoreUnavailable, match="not Swift"):
        list(store.list())
