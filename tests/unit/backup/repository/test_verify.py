"""Bad objects are found, set aside and stored again; what needs them is named."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.format.names import Kind
from lunr.backup.keys import derive
from lunr.backup.repository import quarantine
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import VerifyShard, verify
from lunr.backup.stores.memory import MemoryStore
from tests.support.thorough import examples
from tests.unit.backup.support import (
    SMALL,
    Faulty,
    build_patched,
    load_bytes,
    repository,
    save_bytes,
)

KINDS = (Kind.CHUNK, Kind.PATCH, Kind.SEGMENT)
BLOCKS = 40


def write(data: bytes, rng: random.Random, count: int) -> bytes:
    """`data` with some blocks written anew."""
    changed = bytearray(data)
    for _ in range(count):
        at = rng.randrange(BLOCKS) * SMALL.block
        changed[at : at + SMALL.block] = rng.randbytes(SMALL.block)
    return bytes(changed)


def chain(repo: Repository, rng: random.Random, length: int = 4) -> list[bytes]:
    """Backups b0, b1, … each of which changes a little; their contents."""
    contents = [rng.randbytes(BLOCKS * SMALL.block)]
    for _ in range(length - 1):
        contents.append(write(contents[-1], rng, 3))
    for number, data in enumerate(contents):
        save_bytes(repo, data, f"b{number}", f"b{number - 1}" if number else None)
    return contents


def objects(repo: Repository, *kinds: Kind) -> list[str]:
    return sorted(name for name, _ in repo.store.list() if name.startswith(kinds or KINDS))


def harm(repo: Repository, name: str, how: str) -> None:
    assert isinstance(repo.store, MemoryStore)
    raw = bytearray(repo.store.objects[name])
    if how == "missing":
        del repo.store.objects[name]
    elif how == "cut":
        repo.store.objects[name] = bytes(raw[:-1])
    else:
        raw[len(raw) // 2] ^= 1
        repo.store.objects[name] = bytes(raw)


def unreadable(repo: Repository, contents: list[bytes]) -> set[str]:
    """What a person would find who tried to read everything."""
    found = set()
    for number, data in enumerate(contents):
        try:
            assert load_bytes(repo, f"b{number}") == data
        except (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat):
            found.add(f"b{number}")
    return found


def test_each_object_is_read_once_whatever_shares_it() -> None:
    repo = repository()
    chain(repo, random.Random(1))
    gets: Counter[str] = Counter()
    watched = Faulty(repo.store, lambda call, name: gets.update([name] * (call == "get")))
    done = verify(Repository(watched, repo.keys))
    assert done.damaged == {}
    assert done.objects == len(objects(repo, Kind.CHUNK, Kind.PATCH))
    assert len(objects(repo, Kind.PATCH)) > 0
    assert {gets[name] for name in objects(repo, Kind.CHUNK, Kind.PATCH)} <= {1, 2}  # 2: its index
    assert {gets[name] for name in objects(repo, Kind.SEGMENT)} == {1}


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backup_that_lost_something_is_named_and_no_other(kind: Kind, how: str) -> None:
    rng = random.Random(2)
    repo = repository()
    contents = chain(repo, rng)
    name = rng.choice(objects(repo, kind))
    harm(repo, name, how)
    lost = unreadable(repo, contents)
    assert lost
    for asked in (None, [min(lost)], [f"b{len(contents) - 1}", *lost]):
        done = verify(repo, asked)
        assert set(done.damaged) == lost
        assert all(name in reason for reason in done.damaged.values())
        assert quarantine.names(repo) == {name}


@pytest.mark.parametrize("how", ["missing", "flipped"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_backup_stores_it_again(kind: Kind, how: str) -> None:
    rng = random.Random(3)
    for _ in range(5):
        repo = repository()
        contents = chain(repo, rng)
        harm(repo, rng.choice(objects(repo, kind)), how)
        bad = set(verify(repo).damaged)
        # The newest, whose bytes the volume still has, or a later state of it.
        for number, data in enumerate((contents[-1], write(contents[-1], rng, 2))):
            save_bytes(repo, data, f"new{number}", f"new{number - 1}" if number else "b3")
            assert load_bytes(repo, f"new{number}") == data
        assert set(verify(repo).damaged) == bad


def test_without_a_verify_a_backup_builds_on_what_its_parent_says() -> None:
    repo = repository()
    (data,) = chain(repo, random.Random(4), 1)
    harm(repo, objects(repo, Kind.CHUNK)[0], "missing")
    save_bytes(repo, data, "b1", "b0")
    assert set(verify(repo).damaged) == {"b0", "b1"}
    save_bytes(repo, data, "b2", "b1")
    assert load_bytes(repo, "b2") == data


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_bad_root_damages_its_backup_alone(how: str) -> None:
    repo = repository()
    chain(repo, random.Random(5))
    harm(repo, "roots/b1", how)
    done = verify(repo, ["b0", "b1", "b2", "b3"])
    assert set(done.damaged) == {"b1"}
    assert "b1" in done.damaged["b1"]
    assert quarantine.names(repo) == frozenset()


def test_a_backup_that_no_key_reads_is_damaged() -> None:
    repo = repository()
    chain(repo, random.Random(6), 2)
    other = Repository(repo.store, derive.derive(bytes(32), "default"))
    save_bytes(other, b"x" * 100, "other")
    assert set(verify(repo).damaged) == {"other"}
    both = Repository(repo.store, repo.keys, older=(other.keys,))
    assert verify(both).damaged == {}


def test_an_object_that_was_only_away_is_good_again() -> None:
    repo = repository()
    contents = chain(repo, random.Random(7))
    assert isinstance(repo.store, MemoryStore)
    name = objects(repo, Kind.CHUNK)[0]
    raw = repo.store.objects[name]
    harm(repo, name, "missing")
    assert verify(repo).damaged
    repo.store.objects[name] = raw
    assert verify(repo, share=VerifyShard(0, 1000)).damaged == {}  # what was bad is always read
    assert quarantine.names(repo) == frozenset()
    assert unreadable(repo, contents) == set()


def test_a_store_that_is_away_damages_nothing() -> None:
    repo = repository()
    chain(repo, random.Random(8))

    def fail(call: str, name: str) -> None:
        if call == "get" and name.startswith(("chunks/", "segments/")):
            raise errors.StoreUnavailable(store="test", reason="away.")

    with pytest.raises(errors.StoreUnavailable):
        verify(Repository(Faulty(repo.store, fail), repo.keys))
    assert quarantine.names(repo) == frozenset()


@pytest.mark.parametrize("shares", [1, 3, 7])
def test_every_object_is_in_one_share(shares: int) -> None:
    repo = repository()
    chain(repo, random.Random(9))
    wanted = objects(repo, Kind.CHUNK, Kind.PATCH)
    gets: Counter[str] = Counter()
    watched = Faulty(repo.store, lambda call, name: gets.update([name] * (call == "get")))
    read = [
        verify(Repository(watched, repo.keys), share=VerifyShard(day, shares)).objects
        for day in range(20_000, 20_000 + shares)
    ]
    assert sum(read) == len(wanted)
    assert {gets[name] for name in wanted} == {1}


def test_a_share_finds_what_is_bad_in_it() -> None:
    repo = repository()
    contents = chain(repo, random.Random(10))
    harm(repo, objects(repo, Kind.PATCH)[0], "flipped")
    lost = unreadable(repo, contents)
    found = [set(verify(repo, share=VerifyShard(day, 5)).damaged) for day in range(5)]
    assert lost in found
    first = found.index(lost)
    assert all(day == lost for day in found[first:])  # it stays known


def test_notes_go_with_what_they_are_about() -> None:
    rng = random.Random(11)
    repo = repository()
    contents = chain(repo, rng)
    for name in rng.sample(objects(repo, Kind.CHUNK, Kind.PATCH), 3):
        harm(repo, name, rng.choice(["missing", "flipped"]))
    assert verify(repo).damaged
    assert len(quarantine.names(repo)) == 3
    assert collect(repo).condemned == 0  # backups still need them
    save_bytes(repo, contents[-1], "new", "b3")
    for number in range(len(contents)):
        repo.delete_root(f"b{number}")
    for _ in range(2):
        found = collect(repo)
        if found.collection is not None:
            sweep(repo, found.collection)
    assert quarantine.names(repo) == frozenset()
    assert load_bytes(repo, "new") == contents[-1]
    assert verify(repo).damaged == {}


def test_a_patched_backup_is_verified() -> None:
    repo = repository()
    build_patched(repo)
    assert verify(repo).damaged == {}
    harm(repo, objects(repo, Kind.PATCH)[0], "flipped")
    assert set(verify(repo).damaged) == {"patched"}


_REPO = repository()
_CONTENTS = chain(_REPO, random.Random(12))


@settings(max_examples=examples(75, 3000))
@given(st.data())
def test_no_change_of_any_bit_of_any_object_goes_unnoticed(data: st.DataObject) -> None:
    assert isinstance(_REPO.store, MemoryStore)
    name = data.draw(st.sampled_from([*objects(_REPO), "roots/b0", "roots/b3"]))
    raw = _REPO.store.objects[name]
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    store = MemoryStore()
    store.objects.update(_REPO.store.objects | {name: bytes(changed)})
    repo = Repository(store, _REPO.keys)
    found = set(verify(repo).damaged)
    if found:
        return
    assert name.startswith("roots/")  # blanks between JSON's words say nothing
    assert unreadable(repo, _CONTENTS) == set()
