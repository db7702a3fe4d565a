from __future__ import annotations

import json
import os

import pytest
import zstandard

from lunr.backup import errors
from lunr.backup.repository import collect as garbage
from lunr.backup.repository import pending_deletion, sessions
from lunr.backup.repository.repository import Repository
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import KEYS, load_bytes, save_bytes


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


def make() -> tuple[MemoryStore, Clock, Repository]:
    store, clock = MemoryStore(), Clock()
    return store, clock, Repository(store, KEYS, clock)


def test_a_session_that_is_late_gives_up() -> None:
    _, clock, repo = make()
    with sessions.Writer(repo, "b") as writer:
        clock.now += sessions.LIFETIME - 1
        writer.renew()
        clock.now += sessions.LIFETIME + 1
        with pytest.raises(errors.SessionLost):
            writer.check()


def test_a_session_that_was_ended_by_another_gives_up() -> None:
    store, clock, repo = make()
    with sessions.Writer(repo, "b") as writer:
        writer.check()
        name = next(iter(store.objects))
        record = json.loads(store.objects[name])
        store.objects[name] = json.dumps({**record, "ended": clock.now}).encode()
        with pytest.raises(errors.SessionLost):
            writer.renew()
        del store.objects[name]
        with pytest.raises(errors.SessionLost):
            writer.check()


def test_when_others_take_a_session_for_over() -> None:
    store, clock, repo = make()
    with sessions.Writer(repo, "b"):
        ((_, session),) = sessions.load_all(repo)
        assert session.over(clock.now, 0.0) is None
        late = clock.now + sessions.LIFETIME + sessions.MARGIN
        assert session.over(late, 0.0) is None
        assert session.over(late + 1, 0.0) is not None
    ((_, session),) = sessions.load_all(repo)
    assert session.ended == clock.now
    assert len(store.objects) == 1
    garbage.collect(repo)
    assert not store.objects


def test_a_dead_process_on_this_machine_is_over_when_its_requests_are() -> None:
    _, clock, repo = make()
    with sessions.Writer(repo, "b"):
        ((_, session),) = sessions.load_all(repo)
    dead = {**session.owner, "started": "1"}  # the process id was given to another since
    mine = sessions.Session("b", clock.now + sessions.LIFETIME, (), dead)
    assert mine.over(clock.now + 1, 0.0) is not None
    assert mine.over(clock.now + 59, 60.0) is None
    assert mine.over(clock.now + 61, 60.0) is not None
    elsewhere = {**dead, "boot": "another machine"}
    assert sessions.Session("b", mine.expires, (), elsewhere).over(clock.now + 61, 0.0) is None
    alive = {**dead, "pid": os.getpid(), "started": session.owner["started"]}
    assert sessions.Session("b", mine.expires, (), alive).over(clock.now + 61, 0.0) is None


SESSION = {"format": 1, "backup_id": "b", "expires": 1.0, "knows": [], "owner": {}, "ended": None}
NONSENSE = [
    *(b"", b"[]", b"{}", b'{"format": 1}', b'{"format": 1, "x": 2}', b'{"format":' * 100_000),
    *(
        json.dumps({**SESSION, **wrong}).encode()
        for wrong in (
            *({"backup_id": "../b"}, {"backup_id": None}, {"expires": "soon"}, {"expires": True}),
            *({"knows": "c1"}, {"knows": ["c/1"]}, {"owner": []}, {"ended": "never"}, {"more": 1}),
        )
    ),
]


@pytest.mark.parametrize("raw", NONSENSE)
def test_a_session_that_can_not_be_read_stops_the_sweep(raw: bytes) -> None:
    store, _, repo = make()
    save_bytes(repo, b"x" * 300, "b")
    repo.delete_root("b")
    found = garbage.collect(repo)
    assert found.collection is not None
    store.objects["sessions/00112233aabbccdd"] = raw
    with pytest.raises(errors.CorruptObject, match="sessions/00112233aabbccdd"):
        garbage.sweep(repo, found.collection)


LIST = {"format": 1, "created": 1.0, "objects": {"chunks/aa/b": 1}, "saves": [], "swept": False}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"created": "now"}, {"created": True}, {"objects": ["chunks/aa/b"]}),
        *({"objects": {"chunks/aa/b": -1}}, {"objects": {"chunks/aa/b": "1"}}),
        *({"saves": "b"}, {"saves": ["../b"]}, {"swept": 1}),
    ],
)
def test_a_list_of_other_types_is_no_list(wrong: dict[str, object]) -> None:
    store, _, repo = make()
    store.objects["condemned/c1"] = zstandard.compress(json.dumps(LIST).encode())
    assert pending_deletion.load(repo, "c1") is not None
    store.objects["condemned/c1"] = zstandard.compress(json.dumps({**LIST, **wrong}).encode())
    with pytest.raises(errors.CorruptObject, match="condemned/c1"):
        pending_deletion.load(repo, "c1")


def test_a_list_that_can_not_be_read_stops_saves_until_it_is_swept() -> None:
    store, _, repo = make()
    store.objects["condemned/c1"] = b"not a list"
    with pytest.raises(errors.CorruptObject, match="condemned/c1"):
        save_bytes(repo, b"x" * 300, "b")
    assert garbage.sweep(repo, "c1") == garbage.SweepResult(0, 0)
    save_bytes(repo, b"x" * 300, "b")


def test_a_sweep_waits_for_its_grace_and_can_be_done_again() -> None:
    store, clock, repo = make()
    save_bytes(repo, b"x" * 300, "b")
    repo.delete_root("b")
    found = garbage.collect(repo, grace=100.0)
    assert found.collection is not None
    assert found.condemned == 3
    with pytest.raises(errors.SavesRunning, match="0 s old, 100 s are needed"):
        garbage.sweep(repo, found.collection, grace=100.0)
    clock.now += 101
    assert garbage.sweep(repo, found.collection, grace=100.0).deleted == 3
    assert garbage.sweep(repo, found.collection, grace=100.0).deleted == 0
    assert not store.objects


def test_a_store_that_denies_a_backup_that_is_there_is_not_believed() -> None:
    store, _, repo = make()
    save_bytes(repo, b"x" * 300, "b1")
    save_bytes(repo, b"y" * 300, "b2")
    repo.delete_root("b2")
    collection = garbage.collect(repo, required=["b1"]).collection
    assert collection is not None
    root = store.objects.pop("roots/b1")  # what a Swift with half of its nodes away may answer
    before = set(store.objects)
    with pytest.raises(errors.RootMissing, match="b1"):
        garbage.collect(repo, required=["b1"])
    with pytest.raises(errors.RootMissing, match="b1"):
        garbage.sweep(repo, collection, required=["b1"])
    assert set(store.objects) == before
    store.objects["roots/b1"] = root
    assert garbage.sweep(repo, collection, required=["b1"]).deleted > 0
    assert load_bytes(repo, "b1") == b"x" * 300


def test_a_damaged_backup_stops_the_collection() -> None:
    store, _, repo = make()
    save_bytes(repo, b"x" * 300, "b1")
    save_bytes(repo, b"y" * 300, "b2")
    repo.delete_root("b2")
    segment = repo.load_root("b1").segments[0]
    assert segment is not None
    del store.objects[segment.name("segments")]  # type: ignore[arg-type]
    with pytest.raises(errors.ObjectMissing, match="segments/"):
        garbage.collect(repo)
    assert pending_deletion.listed(repo) == []


def test_more_than_one_list_can_hold_is_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_deletion, "MOST", 2)
    store, _, repo = make()
    save_bytes(repo, bytes(range(256)) + b"x" * 300, "b")
    repo.delete_root("b")
    found = [garbage.collect(repo) for _ in range(3)]
    assert [one.condemned for one in found] == [2, 2, 0]
    for one in found[:2]:
        assert one.collection is not None
        garbage.sweep(repo, one.collection)
    assert not store.objects
