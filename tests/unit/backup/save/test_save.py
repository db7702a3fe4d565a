from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.format.blocks import Compression
from lunr.backup.format.names import Geometry, Ref
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import verify
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.base import Retrying
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import Cancelled, IdInUse
from tests.unit.backup.support import (
    SMALL,
    FailAfter,
    Faulty,
    MemorySource,
    build_patched,
    load_bytes,
    repository,
    save_bytes,
)

chunk = st.one_of(
    st.just(bytes(SMALL.chunk)),
    st.integers(0, 5).map(lambda b: bytes([b]) * SMALL.chunk),
    st.binary(min_size=SMALL.chunk, max_size=SMALL.chunk),
)
volumes = st.builds(
    lambda parts, tail: b"".join([*parts, tail]),
    st.lists(chunk, max_size=11),
    st.binary(max_size=SMALL.chunk),
)


def stored(repo: Repository, prefix: str = "") -> set[str]:
    return {name for name, _ in repo.store.list(prefix)}


@given(
    st.lists(volumes, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.sampled_from(Compression),
)
def test_every_backup_of_a_chain_reads_as_its_volume(
    contents: list[bytes], holes: bool, concurrency: int, compression: Compression
) -> None:
    repo = repository()
    parent = None
    for number, data in enumerate(contents):
        root = save_bytes(
            repo,
            data,
            f"b{number}",
            parent,
            holes=holes,
            concurrency=concurrency,
            compression=compression,
        )
        assert root.size_bytes == len(data)
        assert root.parent_id == parent
        parent = f"b{number}"
    for number, data in enumerate(contents):
        assert load_bytes(repo, f"b{number}") == data
    for number in reversed(range(len(contents))):
        assert verify(repo, concurrency=2).damaged == {}
        repo.delete_root(f"b{number}")
        found = collect(repo, threads=1)
        if found.collection is not None:
            sweep(repo, found.collection, threads=1)
    assert stored(repo) == set()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 5000])
def test_sizes(size: int, tmp_path: Path) -> None:
    repo = repository()
    data = bytes(number % 251 + 1 for number in range(size))
    root = save_bytes(repo, data, "b")
    assert root.statistics.bytes_read == size
    assert load_bytes(repo, "b") == data
    restore(repo, "b", tmp_path / "out", create=True)
    assert (tmp_path / "out").read_bytes() == data
    assert verify(repo).bytes_read == size


def test_zeros_are_not_stored_and_holes_not_read() -> None:
    repo = repository()
    source = MemorySource(bytes(SMALL.chunk * 9) + b"x", holes=True)
    root = save(repo, source, Backup("b", "v", "now", geometry=SMALL))
    assert source.reads == 1
    assert root.statistics.zero_chunks == 9
    assert root.segments[:2] == (None, None)
    assert len(stored(repo, "chunks/")) == 1


def test_what_is_unchanged_is_shared_with_the_parent() -> None:
    repo = repository()
    data = b"".join(bytes([number + 1]) * SMALL.chunk for number in range(8))
    first = save_bytes(repo, data, "b1")
    same = save_bytes(repo, data, "b2", "b1")
    assert same.segments == first.segments
    assert same.statistics.objects_stored == same.statistics.bytes_stored == 0
    changed = data[: SMALL.chunk * 5] + b"!" + data[SMALL.chunk * 5 + 1 :]
    third = save_bytes(repo, changed, "b3", "b2")
    assert third.statistics.objects_stored == 2  # a chunk and its segment
    assert third.segments[0] == first.segments[0]
    assert load_bytes(repo, "b3") == changed


def test_equal_chunks_are_stored_once_wherever_they_are() -> None:
    repo = repository()
    one, two = (bytes([value]) * SMALL.chunk for value in (1, 2))
    save_bytes(repo, one * 8 + two, "b1", concurrency=3)
    assert len(stored(repo, "chunks/")) == 2
    save_bytes(repo, two + one, "b2", "b1")  # both moved
    assert len(stored(repo, "chunks/")) == 2


def test_no_name_is_used_twice() -> None:
    repo = repository()
    save_bytes(repo, b"x" * 300, "b1")
    before = stored(repo, "chunks/") | stored(repo, "segments/")
    repo.delete_root("b1")
    save_bytes(repo, b"x" * 300, "b1")
    after = stored(repo, "chunks/") | stored(repo, "segments/")
    assert len(after) == 2 * len(before)


def test_a_save_that_was_done_is_not_done_again() -> None:
    repo = repository()
    first = save_bytes(repo, b"x" * 300, "b1")
    before = stored(repo)
    assert save_bytes(repo, b"other", "b1") == first
    assert stored(repo) == before
    with pytest.raises(IdInUse):
        save_bytes(repo, b"x", "b1", volume_id="another")


@pytest.mark.parametrize("damage", ["root", "root missing", "segment", "segment missing", "sizes"])
def test_a_parent_that_is_of_no_use_costs_no_backup(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    repo = repository(store)
    data = bytes(range(256)) * 8
    save_bytes(repo, data, "b1", geometry=Geometry(64, 512, 4) if damage == "sizes" else SMALL)
    segment = next(iter(stored(repo, "segments/")))
    match damage:
        case "root":
            store.objects["roots/b1"] = store.objects["roots/b1"].replace(b"volume", b"Volume")
        case "root missing":
            del store.objects["roots/b1"]
        case "segment":
            store.objects[segment] = store.objects[segment][:-1] + b"!"
        case "segment missing":
            del store.objects[segment]
    root = save_bytes(repo, data, "b2", "b1")
    # Of one that has only lost a segment the others are as good as ever.
    assert root.parent_id == ("b1" if damage.startswith("segment") else None)
    assert load_bytes(repo, "b2") == data
    assert "can't be" in caplog.text


def test_a_patched_parent_is_built_upon() -> None:
    repo = repository()
    data = build_patched(repo)
    same = save_bytes(repo, data, "b2", "patched")
    assert same.statistics.objects_stored == 0
    changed = b"!" + data[1:]
    save_bytes(repo, changed, "b3", "patched")
    repo.delete_root("patched")
    repo.delete_root("b2")
    found = collect(repo)
    assert found.collection is not None
    sweep(repo, found.collection)
    assert load_bytes(repo, "b3") == changed
    assert stored(repo, "patches/") != set()


# --- faults --------------------------------------------------------------------------


def count_calls(data: bytes) -> int:
    faults = FailAfter(1 << 30)
    save_bytes(repository(Faulty(MemoryStore(), faults)), data, "b")
    return faults.calls


def test_a_store_that_fails_at_any_step_makes_no_backup() -> None:
    data = b"".join(bytes([number + 1]) * SMALL.chunk for number in range(6))
    calls = count_calls(data)
    assert calls > 12
    failed_after_root = 0
    for step in range(calls):
        inner = MemoryStore()
        repo = repository(Faulty(inner, FailAfter(step)))
        try:
            save_bytes(repo, data, "b")
        except errors.StoreUnavailable:
            if "roots/b" in inner.objects:  # the answer to the root was lost: it is complete
                failed_after_root += 1
                assert load_bytes(repository(inner), "b") == data
        else:
            assert load_bytes(repository(inner), "b") == data
            assert step == calls - 1  # only the note that the session is over
        # Whatever it was, the next try works.
        save_bytes(repository(inner), data, "b")
        assert load_bytes(repository(inner), "b") == data
    assert failed_after_root == 1


def test_one_failure_at_any_step_is_mended_by_a_retry() -> None:
    data = b"".join(bytes([number + 1]) * SMALL.chunk for number in range(6))
    for step in range(count_calls(data)):
        faults = FailAfter(step, times=1)
        inner = Faulty(MemoryStore(), faults)
        repo = repository(Retrying(inner, retries=2, pause=0.0))
        try:
            save_bytes(repo, data, "b")
        except errors.StoreUnavailable as error:
            assert "sync" in str(error)
        else:
            assert load_bytes(repo, "b") == data


def test_a_store_that_forgets_the_root_is_noticed() -> None:
    class Forgetful(MemoryStore):
        def put(self, name: str, *buffers: bytes, **options: Any) -> None:
            if not name.startswith("roots/"):
                super().put(name, *buffers, **options)

    with pytest.raises(errors.BackupMissing):
        save_bytes(repository(Forgetful()), b"x" * 300, "b")


def test_a_source_that_can_not_be_read_makes_no_backup() -> None:
    class Broken(MemorySource):
        def read(self, buffer, offset, length):  # type: ignore[no-untyped-def]
            if offset == 3 * SMALL.chunk:
                raise errors.SourceError(path="disk", offset=offset, reason="Input/output error.")
            return super().read(buffer, offset, length)

    repo = repository()
    for concurrency in (1, 4):
        with pytest.raises(errors.SourceError, match="byte 768"):
            save(
                repo,
                Broken(b"x" * 2000),
                Backup("b", "v", "now", geometry=SMALL),
                concurrency=concurrency,
            )
    assert stored(repo, "roots/") == set()


def test_a_source_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 100)
    with pytest.raises(errors.SourceError, match="ends there, before its 200 bytes"):
        FileSource(tmp_path / "short", 200)
    with pytest.raises(errors.SourceError, match="No such file"):
        FileSource(tmp_path / "none")
    source = FileSource(tmp_path / "short")
    (tmp_path / "short").write_bytes(b"")
    with pytest.raises(errors.SourceError, match="ended while"):
        save(repository(), source, Backup("b", "v", "now"))
    source.close()


def test_a_save_is_soon_cancelled() -> None:
    class Slow(MemorySource):
        def read(self, buffer, offset, length):  # type: ignore[no-untyped-def]
            time.sleep(0.02)
            return super().read(buffer, offset, length)

    repo = repository()
    for concurrency in (1, 4):
        cancel = threading.Event()
        threading.Timer(0.1, cancel.set).start()
        source = Slow(b"x" * 256 * 2000)
        with pytest.raises(Cancelled):
            save(
                repo,
                source,
                Backup("b", "v", "now", geometry=SMALL),
                concurrency=concurrency,
                cancel=cancel,
            )
        assert source.reads < 1000, "it went on for long"
    assert stored(repo, "roots/") == set()


def test_progress_ends_at_the_end() -> None:
    seen: list[tuple[int, int]] = []
    data = bytes(1000) + b"x" * 1000
    save(
        repository(),
        MemorySource(data, holes=True),
        Backup("b", "v", "now", geometry=SMALL),
        concurrency=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (2000, 2000)


# --- damage ----------------------------------------------------------------------------


def damaged(how: str, raw: bytes, other: bytes) -> bytes | None:
    match how:
        case "gone":
            return None
        case "cut":
            return raw[: len(raw) // 2]
        case "empty":
            return b""
        case "swapped":
            return other
        case _:
            return raw[:-3] + bytes([raw[-3] ^ 4]) + raw[-2:]


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "swapped", "flipped"])
def test_damage_is_named_and_gives_no_bytes(how: str, tmp_path: Path) -> None:
    pristine = MemoryStore()
    data = build_patched(repository(pristine))
    names = [name for name in pristine.objects if not name.startswith("sessions/")]
    for name in names:
        store = MemoryStore()
        store.objects = dict(pristine.objects)
        twin = (
            next(n for n in names if n != name and n.split("/")[0] == name.split("/")[0])
            if (how == "swapped" and not name.startswith("roots/"))
            else names[0]
        )
        raw = damaged(how, store.objects[name], store.objects[twin])
        if raw is None:
            del store.objects[name]
        else:
            store.objects[name] = raw
        repo = repository(store)
        out = tmp_path / "out"
        is_needed = True

        def check(r: Repository = repo) -> None:
            lost = verify(r, ["patched"]).damaged
            if lost:
                raise errors.DamagedBackups(count=len(lost), reasons=lost["patched"])

        for work in (
            check,
            lambda r=repo: load_bytes(r, "patched"),
            lambda r=repo, out=out: restore(r, "patched", out, create=True),
        ):
            try:
                work()
            except errors.LunrError as error:
                assert name in str(error) or "no backup patched" in str(error)
            else:  # those bytes were replaced by a later patch: only verify looks at them
                assert how == "flipped" and work is not check
                is_needed = False
        if not is_needed:
            assert out.read_bytes() == data
            out.unlink()
        assert not out.exists()
    assert load_bytes(repository(pristine), "patched") == data


def test_verify_goes_on_after_a_bad_object() -> None:
    store = MemoryStore()
    repo = repository(store)
    save_bytes(repo, bytes(range(256)) * 8 + b"y" * 256 + b"z" * 256, "b")
    chunks = sorted(stored(repo, "chunks/"))
    for name in chunks:
        store.objects[name] = b"bad"
    assert len(chunks) == 3
    assert all(name in verify(repo).damaged["b"] for name in chunks)


def test_ref_equality_is_by_content() -> None:
    assert Ref(b"a", b"b") == Ref(b"a", b"b") != Ref(b"a", b"c")


def test_a_root_that_the_store_denies_is_deleted_all_the_same() -> None:
    # As Swift may, when the nodes that have it are away. It would come back with them.
    store = MemoryStore()
    save_bytes(repository(store), b"x" * 300, "b1")

    def deny(call: str, name: str) -> None:
        if call == "get":
            raise errors.ObjectMissing(name=name)

    assert not repository(Faulty(store, deny)).delete_root("b1")
    assert "roots/b1" not in store.objects
    save_bytes(repository(store), b"x" * 300, "b1")
    assert repository(store).delete_root("b1")
    assert not repository(store).delete_root("b1")
