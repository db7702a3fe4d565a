from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.stores import open_store
from lunr.backup.stores.base import Retrying, Store, read_retry_after
from lunr.backup.stores.files import FileStore
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import Cancelled, InvalidField
from tests.support.waiting import SOON
from tests.unit.backup.stores.contract import StoreContract
from tests.unit.backup.support import FailAfter, Faulty


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        yield MemoryStore()


class TestFiles(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = open_store(f"files:{tmp_path}/store", "account")
        yield store
        store.close()

    def test_a_failed_put_leaves_nothing(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        (tmp_path / "chunks/aa/one").mkdir(parents=True)  # in the way of the rename
        with pytest.raises(errors.StoreUnavailable):
            store.put("chunks/aa/one", b"x")
        assert list(store.list()) == []
        store.close()

    def test_a_name_does_not_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        beside = tmp_path / "passwd"
        beside.write_bytes(b"precious")
        store = FileStore(tmp_path / "store")
        for name in (str(beside), "../passwd", "chunks/../../passwd", "", "a//b", "a/.", "a\n"):
            for use in (store.put, store.get, store.delete):
                with pytest.raises(errors.BadObjectName):
                    use(name)
        (tmp_path / "store" / "link").symlink_to(beside)
        with pytest.raises(errors.StoreUnavailable):
            store.get("link")
        store.close()
        assert beside.read_bytes() == b"precious"
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "passwd", "store"]

    def test_what_is_not_lunrs_is_not_listed(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        for name in (".nfs0001", "a note.txt"):
            (tmp_path / name).write_bytes(b"x")
        assert list(store.list()) == []
        store.close()

    def test_what_a_killed_writer_left_is_listed(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        (tmp_path / "chunks").mkdir()
        (tmp_path / "chunks/half.0123abcd.tmp").write_bytes(b"half")
        assert list(store.list()) == [("chunks/half.0123abcd.tmp", 4)]
        store.close()

    def test_nobody_else_can_read(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path / "store")
        store.put("chunks/aa/one", b"x")
        for path in (tmp_path / "store", tmp_path / "store/chunks/aa/one"):
            assert path.stat().st_mode & 0o077 == 0, path
        store.close()

    def test_deleted_folders_go(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        store.put("chunks/aa/one", b"x")
        store.put("chunks/bb/two", b"x")
        store.delete("chunks/aa/one")
        assert os.listdir(tmp_path / "chunks") == ["bb"]
        store.delete("chunks/bb/two")
        assert os.listdir(tmp_path) == []
        store.close()

    def test_a_file_in_the_way_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(errors.StoreRefused, match="file"):
            FileStore(tmp_path / "file" / "store")


class TestRetrying(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        # Every call fails twice, and it does not show.
        calls = {"n": 0}
        lock = threading.Lock()

        def before(call: str, name: str) -> None:
            with lock:
                calls["n"] += 1
                fail = calls["n"] % 3
            if fail and call != "sync":  # a lost write is not tried again
                raise errors.StoreUnavailable(store="test", reason="busy.")

        yield Retrying(Faulty(MemoryStore(), before), retries=50, pause=0.0)

    def test_in_the_end_it_gives_up(self) -> None:
        faults = FailAfter(0)
        store = Retrying(Faulty(MemoryStore(), faults), retries=3, pause=0.0)
        with pytest.raises(errors.StoreUnavailable):
            store.get("x")
        assert faults.calls == 4

    def test_what_can_not_pass_is_not_tried_again(self) -> None:
        faults = FailAfter(1 << 30)
        store = Retrying(Faulty(MemoryStore(), faults), retries=3, pause=0.0)
        with pytest.raises(errors.ObjectMissing):
            store.get("x")
        assert faults.calls == 1

    def test_a_pause_can_be_cancelled(self) -> None:
        cancel = threading.Event()
        store = Retrying(Faulty(MemoryStore(), FailAfter(0)), 5, cancel, pause=30.0)
        threading.Timer(0.05, cancel.set).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            store.get("x")
        assert time.monotonic() - start < SOON

    @pytest.mark.parametrize(
        ("asked_for", "least", "most"), [(40.0, 40.0, 41.0), (1e9, 300.0, 301.0), (None, 0.3, 1.3)]
    )
    def test_a_store_says_when_it_wants_to_be_asked_again(
        self, asked_for: float | None, least: float, most: float
    ) -> None:
        cancel, pauses = threading.Event(), []

        def wait(seconds: float | None = None) -> bool:
            pauses.append(seconds or 0.0)
            return False

        def busy(_call: str, _name: str) -> None:
            error = errors.StoreUnavailable(store="test", reason="busy.")
            error.retry_after = asked_for
            raise error

        cancel.wait = wait  # type: ignore[method-assign,assignment]
        store = Retrying(Faulty(MemoryStore(), busy), 2, cancel)
        with pytest.raises(errors.StoreUnavailable):
            store.get("x")
        with pytest.raises(errors.StoreUnavailable):
            list(store.list())
        assert len(pauses) == 4
        assert all(least <= pause <= most for pause in pauses)

    def test_who_waits_to_try_again_keeps_nobody_from_the_store(self) -> None:
        slot, cancel = threading.Semaphore(), threading.Event()
        seen: list[bool] = []

        def wait(_seconds: float | None = None) -> bool:
            seen.append(slot.acquire(blocking=False))
            slot.release()
            return False

        cancel.wait = wait  # type: ignore[method-assign,assignment]
        store = Retrying(Faulty(MemoryStore(), FailAfter(0)), 2, cancel)
        with pytest.raises(errors.StoreUnavailable):
            store.put("chunks/x", b"x", slot=slot)
        assert seen == [True, True]

    def test_a_listing_that_breaks_goes_on_behind_its_last_name(self) -> None:
        inner = _Breaking(in_order=True)
        names = [name for name, _ in Retrying(inner, 5, pause=0.0).list()]
        assert names == [f"chunks/{number}" for number in range(6)]
        assert inner.broken == 2

    def test_a_listing_in_no_order_is_not_begun_anew_in_its_middle(self) -> None:
        # Which names were given already, nobody knows without holding them all in memory.
        given = []
        with pytest.raises(errors.StoreUnavailable, match="page 2"):
            for name, _ in Retrying(_Breaking(in_order=False), 5, pause=0.0).list():
                given.append(name)
        assert len(given) == len(set(given)) == 3

    def test_a_long_listing_takes_no_memory_for_its_names(self) -> None:
        class Long(MemoryStore):
            in_order = True

            def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
                return ((f"chunks/{number:064}", 1) for number in range(50_000))

        tracemalloc.start()
        try:
            assert sum(size for _, size in Retrying(Long(), 1).list()) == 50_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20


class _Breaking(MemoryStore):
    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.in_order = in_order  # type: ignore[misc]
        self.broken = 0
        for number in range(6):
            self.put(f"chunks/{number}", b"")

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for number, entry in enumerate(super().list(prefix)):
            if number == 3 and self.broken < 2:
                self.broken += 1
                raise errors.StoreUnavailable(store="test", reason="page 2.")
            yield entry


@pytest.mark.parametrize(
    "url", ["", "files:", "files:relative", "swift:", "swift:a/b", "http://x", "/srv", "s3:x"]
)
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(errors.BadStoreURL):
        open_store(url, "default", {})


@pytest.mark.parametrize("repository", ["../other", "a/b", "", ".", "x" * 65])
def test_a_repository_is_an_id(tmp_path: Path, repository: str) -> None:
    with pytest.raises(InvalidField):
        open_store(f"files:{tmp_path}", repository)


def test_swift_needs_a_place_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ST_AUTH", "OS_AUTH_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(errors.StoreRefused, match="ST_AUTH"):
        open_store("swift:backups", "default")


def test_a_date_to_come_again_is_read() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    seconds = read_retry_after(soon)
    assert seconds is not None
    assert 90 <= seconds <= 100
    assert read_retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert read_retry_after("9" * 400) is None
