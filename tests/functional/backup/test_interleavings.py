"""Collection while everything else goes on: nothing needed goes, in the end nothing else stays."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from lunr.backup import collect as garbage
from lunr.backup import condemned, pipeline, sessions
from lunr.backup.errors import ObjectMissing
from lunr.backup.repository import Repository
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import LunrError
from tests.functional.backup.interleaving import KEYS, Actor, Scheduler, View, World
from tests.unit.backup.support import Faulty, load_bytes, repository, save_bytes

#: How many random runs of each kind; more can be asked for by the environment.
RUNS = int(os.environ.get("LUNR_INTERLEAVINGS", "50"))
SEED = int(os.environ.get("LUNR_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
LAG = 1800.0
_CHUNKS = 6
_BLOCKS = 4  # of a chunk


class Run:
    """Two volumes that change, are saved, deleted and collected, for some hundred requests."""

    def __init__(self, seed: int, lag: float, grace: float, service: bool) -> None:
        self.world = World(seed, lag)
        self.chance = self.world.random
        self.scheduler = Scheduler(self.world)
        self.grace = grace
        self.service = service
        self.volumes = [[0] * _CHUNKS * _BLOCKS, [0] * _CHUNKS * _BLOCKS]
        self.serial = 0
        self.saved: dict[str, bytes] = {}  # acknowledged, and not being deleted
        self.content: dict[str, bytes] = {}  # whatever was ever begun
        self.deleting: set[str] = set()  # or deleted, or as good as that
        self.deleted: set[str] = set()
        # What the service knows, in its database:
        self.saving: dict[str, Actor] = {}
        self.collections: dict[str, set[str]] = {}  # unswept -> saves it must wait for
        self.direct = Repository(View(self.world), KEYS, clock=lambda: self.world.now)

    # --- what the actors do ------------------------------------------------------

    def start_save(self) -> None:
        self.serial += 1
        backup_id = f"b{self.serial}"
        number = self.chance.randrange(2)
        volume = self.volumes[number]
        for _ in range(self.chance.randrange(4)):
            # A whole chunk, or one block, which goes into a patch.
            first = self.chance.randrange(_CHUNKS) * _BLOCKS
            count = self.chance.choice((1, _BLOCKS))
            volume[first : first + count] = [self.chance.randrange(9)] * count
        data = b"".join(bytes([value]) * 64 for value in volume)
        parents = [*self.saved, None]
        parent = self.chance.choice(parents)
        known = tuple(self.collections) if self.service else ()
        self.content[backup_id] = data

        def work(repository: Repository) -> None:
            save_bytes(repository, data, backup_id, parent, condemned=known)
            self.saved[backup_id] = data

        self.saving[backup_id] = self.scheduler.start(f"save {backup_id}", work)

    def start_delete(self) -> None:
        parents = set()
        if self.service:  # refuses to delete the parent of a running backup
            parents = {actor.what for actor in self.scheduler.actors}
        choices = [one for one in self.saved if f"save {one}" not in parents]
        if not choices:
            return
        backup_id = self.chance.choice(choices)
        del self.saved[backup_id]
        self.deleting.add(backup_id)

        def work(repository: Repository) -> None:
            repository.delete_root(backup_id)
            self.deleted.add(backup_id)

        self.scheduler.start(f"delete {backup_id}", work)

    def keep(self) -> list[str]:
        """All backups that are or may be there, as the service knows them."""
        if not self.service:
            return []
        return [one for one in self.content if one not in self.deleted]

    def start_collect(self) -> None:
        keep = self.keep()

        def work(repository: Repository) -> None:
            found = garbage.collect(repository, keep, self.grace, threads=1)
            if found.collection is not None and self.service:
                self.collections[found.collection] = {
                    one for one, actor in self.saving.items() if not actor.over
                }

        self.scheduler.start("collect", work)

    def start_sweep(self) -> None:
        known = list(self.collections) if self.service else condemned.listed(self.direct)
        if not known:
            return
        collection = self.chance.choice(list(known))
        if self.service and any(not self.saving[one].over for one in self.collections[collection]):
            return
        keep = self.keep()

        def work(repository: Repository) -> None:
            garbage.sweep(repository, collection, keep, self.grace, threads=1)
            self.collections.pop(collection, None)

        self.scheduler.start(f"sweep {collection}", work)

    # --- the run -------------------------------------------------------------------

    def go(self) -> None:
        starts = (
            [self.start_save] * 3 + [self.start_delete, self.start_collect] + [self.start_sweep] * 2
        )
        for _ in range(60):
            if len(self.scheduler.actors) < 6:
                self.chance.choice(starts)()
            for _ in range(self.chance.randrange(20)):
                if self.scheduler.actors:
                    self.scheduler.step()
            self.check()
        while self.scheduler.actors:
            self.scheduler.step()
        self.check()

    def check(self) -> None:
        """Every backup whose root is there reads as it was, acknowledged or not."""
        for name in self.world.objects:
            if name.startswith("roots/"):
                backup_id = name.removeprefix("roots/")
                if backup_id not in self.deleting:
                    assert load_bytes(self.direct, backup_id) == self.content[backup_id]
        for backup_id in self.saved:
            assert f"roots/{backup_id}" in self.world.objects

    def drain(self) -> None:
        """Time goes by, and whoever collects now finds a quiet repository."""
        for _ in range(4):
            self.world.now += 4 * (self.grace + LAG + 1000)
            keep = [one for one in self.keep() if f"roots/{one}" in self.world.objects]
            for collection in condemned.listed(self.direct):
                garbage.sweep(self.direct, collection, keep, self.grace, threads=1)
            garbage.collect(self.direct, keep, self.grace, threads=1)

    def needed(self) -> set[str]:
        names = set()
        for name in self.world.objects:
            if name.startswith("roots/"):
                root = self.direct.load_root(name.removeprefix("roots/"))
                names.add(name)
                for chunks, ref in self.direct.segments_of(root):
                    if ref is not None:
                        names.add(ref.name("segments"))  # type: ignore[arg-type]
                        for entry in self.direct.load_segment(ref, len(chunks)):
                            names.update(garbage.objects_of(entry))
        return names


def go(seed: int, lag: float, grace: float, service: bool) -> Counter[str]:
    """One run; how often each kind of actor ended how."""
    run = Run(seed, lag, grace, service)
    try:
        run.go()
        run.drain()
        run.check()
        needed = run.needed()
        assert {one for one in run.world.objects if not one.startswith("condemned/")} == needed
        for collection in condemned.listed(run.direct):
            left = condemned.load(run.direct, collection)
            assert left is None or (left.swept and needed.issuperset(left.objects))
        run.world.now += 4 * LAG  # or a root that was stored just now is not listed
        for backup_id in list(run.direct.backup_ids()):
            run.deleting.add(backup_id)
            run.direct.delete_root(backup_id)
        run.drain()
        assert not run.world.objects
    except BaseException:
        print(f"repeat this with LUNR_SEED={seed} LUNR_INTERLEAVINGS=1")
        raise
    finally:
        run.scheduler.kill_all()
    return Counter(
        f"{one.what.split()[0]} "
        + ("crashed" if one.crashed else one.failure.code if one.failure else "done")
        for one in run.scheduler.finished
    )


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
    if RUNS >= 50:  # the runs are worth something only if all of this happened in them
        actors = ("save", "sweep", "collect", "delete")
        assert all(ends[f"{actor} done"] for actor in actors), ends
        assert any(ends[f"{actor} crashed"] for actor in actors), ends
        assert ends["sweep saves_running"], ends
        assert ends["save session_lost"], ends


def _find_fault(lag: float, grace: float) -> None:
    for number in range(4 * RUNS):
        go(SEED + number, lag, grace, service=False)


def test_a_grace_shorter_than_the_lag_loses_objects() -> None:
    # The proof that these runs find what they look for.
    with pytest.raises((AssertionError, LunrError)):
        _find_fault(LAG, 0.0)


def test_a_sweep_that_does_not_wait_loses_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.Session, "over", lambda *_: 0.0)
    monkeypatch.setattr(sessions.Writer, "check", lambda _: None)
    with pytest.raises((AssertionError, LunrError)):
        _find_fault(0.0, 0.0)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_writer_never_refers_to_a_condemned_name(
    monkeypatch: pytest.MonkeyPatch, obeys: bool
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
            pipeline, "load_names", lambda *_: (frozenset(), condemned.listed(repo))
        )
    save_bytes(repository(Faulty(store, sweep)), data, "third", "second")
    if obeys:
        assert load_bytes(repo, "third") == data
    else:
        with pytest.raises(ObjectMissing):
            load_bytes(repo, "third")


def test_a_sweep_that_does_not_look_again_loses_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_needed", lambda *_: set())
    with pytest.raises((AssertionError, LunrError)):
        _find_fault(0.0, 0.0)
