"""Collection while everything else goes on: nothing needed goes, in the end nothing else stays."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from lunr.backup.errors import ObjectMissing
from lunr.backup.repository import collect as garbage
from lunr.backup.repository import pending_deletion, quarantine, sessions
from lunr.backup.save import save
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import LunrError
from tests.functional.backup.random_histories import LAG, go
from tests.support.thorough import examples
from tests.unit.backup.support import Faulty, load_bytes, repository, save_bytes

#: How many random runs of each kind; more can be asked for by the environment.
RUNS = int(os.environ.get("LUNR_INTERLEAVINGS", examples(8, 1000)))
SEED = int(os.environ.get("LUNR_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


@pytest.mark.parametrize(
    ("lag", "grace", "service"),
    [(0.0, 0.0, False), (LAG, 2 * LAG, False), (LAG, 0.0, True)],
    ids=["files", "standalone-swift", "service-swift"],
)
def test_nothing_needed_goes_and_nothing_else_stays(
    lag: float, grace: float, service: bool
) -> None:
    ends: Counter[str] = Counter()
    for number in range(RUNS):
        ends += go(SEED + number, lag, grace, service)
    print(dict(ends))
    # The runs are worth something only if all of this happened in them: they see to it.
    for actor in ("save", "sweep", "collect", "delete", "verify", "restore"):
        assert ends[f"{actor} done"] >= RUNS, ends
    assert ends["save crashed"] >= RUNS, ends
    assert ends["sweep saves_running"] >= RUNS, ends
    assert ends["save session_lost"] >= RUNS, ends
    assert ends["rotten"] >= RUNS // 2, ends


def test_the_same_over_sockets() -> None:
    ends: Counter[str] = Counter()
    for number in range(max(2, RUNS // 10)):
        ends += go(SEED + number, LAG, 0.0, service=True, swift=True)
    print(dict(ends))


def test_a_grace_shorter_than_the_lag_loses_objects() -> None:
    # The proof that these runs find what they look for.
    with pytest.raises((AssertionError, LunrError)):
        go(SEED, LAG, 0.0, service=False, rot=False)


def test_a_sweep_that_does_not_wait_loses_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.Session, "over", lambda *_: 0.0)
    monkeypatch.setattr(sessions.Writer, "check", lambda _: None)
    with pytest.raises((AssertionError, LunrError)):
        go(SEED, 0.0, 0.0, service=False, rot=False)


def test_a_save_that_heeds_no_notes_refers_to_what_has_rotted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "names", lambda _: frozenset())
    with pytest.raises((AssertionError, LunrError)):
        go(SEED | 1, 0.0, 0.0, service=False)


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("source", ["parent", "like"])
def test_a_writer_never_refers_to_a_condemned_name(
    monkeypatch: pytest.MonkeyPatch, obeys: bool, source: str
) -> None:
    # Too rare for chance: `second` has what was condemned while it was saved,
    # and is deleted when `third` has just taken it over from there.
    store = MemoryStore()
    repo = repository(store)
    data = bytes(range(1, 256)) * 4
    save_bytes(repo, data, "first")
    found: list[str] = []

    def condemn(call: str, name: str) -> None:
        if (call, name) == ("put", "roots/second"):
            repo.delete_root("first")
            collected = garbage.collect(repo, threads=1)
            assert collected.collection is not None
            found.append(collected.collection)

    save_bytes(repository(Faulty(store, condemn)), data, "second", "first")
    assert load_bytes(repo, "second") == data

    def sweep(call: str, name: str) -> None:
        if (call, name) == ("put", "roots/third"):
            repo.delete_root("second")
            garbage.sweep(repo, found[0], threads=1)

    if not obeys:
        monkeypatch.setattr(
            save, "load_names", lambda *_: (frozenset(), pending_deletion.listed(repo))
        )
    found_at = {"parent_id": "second"} if source == "parent" else {"like": ("second",)}
    save_bytes(repository(Faulty(store, sweep)), data, "third", **found_at)  # type: ignore[arg-type]
    if obeys:
        assert load_bytes(repo, "third") == data
    else:
        with pytest.raises(ObjectMissing):
            load_bytes(repo, "third")


def test_a_sweep_that_does_not_look_again_loses_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_needed", lambda *_: set())
    with pytest.raises((AssertionError, LunrError)):
        go(SEED, 0.0, 0.0, service=False, rot=False)
