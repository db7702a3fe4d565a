"""What every store must do: each store's tests inherit this class."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lunr.backup import errors
from lunr.backup.stores.base import Store
from tests.support.waiting import PATIENCE


class StoreContract:
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        raise NotImplementedError

    def test_what_is_put_is_got(self, store: Store) -> None:
        store.put("chunks/aa/one", b"abc", memoryview(b"defg"), bytearray(b"h"))
        store.sync()
        assert bytes(store.get("chunks/aa/one")) == b"abcdefgh"

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, 3, b"abc"),
            (2, 3, b"cde"),
            (6, 9, b"gh"),
            (3, None, b"defgh"),
            (8, 4, b""),
            (0, 0, b""),
        ],
    )
    def test_a_range(self, store: Store, offset: int, length: int | None, expected: bytes) -> None:
        store.put("chunks/aa/one", b"abcdefgh")
        assert bytes(store.get("chunks/aa/one", offset, length)) == expected

    def test_an_empty_object(self, store: Store) -> None:
        store.put("roots/empty")
        assert bytes(store.get("roots/empty")) == b""

    def test_a_large_object_of_many_buffers(self, store: Store) -> None:
        parts = [bytes([number % 256]) * 3000 for number in range(1500)]
        store.put("chunks/large", *parts)
        assert bytes(store.get("chunks/large")) == b"".join(parts)

    def test_a_later_put_replaces(self, store: Store) -> None:
        store.put("sessions/one", b"first and long", durable=True)
        store.put("sessions/one", b"second", durable=True)
        assert bytes(store.get("sessions/one")) == b"second"

    def test_a_slot_is_held_while_it_is_put_and_no_longer(self, store: Store) -> None:
        slot = threading.BoundedSemaphore()
        slot.acquire()
        thread = threading.Thread(target=lambda: store.put("chunks/aa/one", b"abc", slot=slot))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        slot.release()
        thread.join(PATIENCE)
        assert slot.acquire(blocking=False)
        assert bytes(store.get("chunks/aa/one")) == b"abc"

    def test_what_is_missing_is_named(self, store: Store) -> None:
        for offset, length in ((0, None), (5, 10)):
            with pytest.raises(errors.ObjectMissing, match="chunks/aa/none"):
                store.get("chunks/aa/none", offset, length)

    def test_delete_can_be_done_again(self, store: Store) -> None:
        store.put("roots/one", b"x")
        store.delete("roots/one")
        store.delete("roots/one")
        store.delete("never/was")
        with pytest.raises(errors.ObjectMissing):
            store.get("roots/one")

    def test_list(self, store: Store) -> None:
        assert list(store.list()) == []
        assert list(store.list("roots/")) == []
        for name in ("roots/a", "roots/ab", "roots/b", "chunks/aa/x", "chunks/ab/y"):
            store.put(name, name.encode())
        assert sorted(store.list("roots/")) == [("roots/a", 7), ("roots/ab", 8), ("roots/b", 7)]
        assert sorted(name for name, _ in store.list("roots/a")) == ["roots/a", "roots/ab"]
        assert sorted(name for name, _ in store.list("chunks/a")) == ["chunks/aa/x", "chunks/ab/y"]
        assert [name for name, _ in store.list("chunks/ab/")] == ["chunks/ab/y"]
        assert len(list(store.list())) == 5
        for name, _ in list(store.list()):
            store.delete(name)
        assert list(store.list()) == []

    def test_many_threads(self, store: Store) -> None:
        failures = []

        def work(number: int) -> None:
            try:
                for turn in range(10):
                    name = f"chunks/{turn:02x}/{number}"
                    store.put(name, name.encode())
                    assert bytes(store.get(name)) == name.encode()
                    store.delete(name)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert list(store.list()) == []
