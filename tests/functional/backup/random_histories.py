"""Random lives of an account's backups, and what must be true in each and at its end."""

from __future__ import annotations

import contextlib
from collections import Counter

from lunr.backup.errors import CorruptObject, ObjectMissing, UnsupportedFormat
from lunr.backup.format.names import Kind
from lunr.backup.repository import collect as garbage
from lunr.backup.repository import pending_deletion, quarantine
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.sessions import LIFETIME, MARGIN
from lunr.backup.repository.verify import verify
from lunr.backup.stores import connection_options
from lunr.backup.stores.swift import SwiftStore
from lunr.common.errors import LunrError
from lunr.common.extents import runs
from tests.functional.backup.interleaving import KEYS, Actor, Objects, Scheduler, View, World
from tests.functional.backup.swift_server import SwiftServer
from tests.unit.backup.support import SMALL, load_bytes, save_bytes

LAG = 1800.0
_CHUNKS = 6
_BLOCKS = 4  # of a chunk


class Life:
    """Two volumes change, are saved, read, verified, deleted and collected.

    For some hundred requests, after the few whose order matters most. Half of the saves know
    what has changed, half of them are told of other backups, which may be deleted, or being
    deleted, or never were.
    """

    def __init__(self, seed: int, lag: float, grace: float, service: bool, rot: bool) -> None:
        self.world = World(seed, lag)
        self.chance = self.world.random
        self.rot = 0.05 if rot and seed % 2 else 0.0
        self.scheduler = Scheduler(self.world)
        self.grace = grace
        self.service = service
        self.volumes = [[0] * _CHUNKS * _BLOCKS, [0] * _CHUNKS * _BLOCKS]
        self.serial = 0
        self.saved: dict[str, bytes] = {}  # acknowledged, and not being deleted
        self.content: dict[str, bytes] = {}  # whatever was ever begun
        self.deleting: set[str] = set()  # or deleted, or as good as that
        self.deleted: set[str] = set()
        self.rescued = 0  # names that stay condemned although a backup needs them
        # What the service knows, in its database:
        self.saving: dict[str, Actor] = {}
        self.collections: dict[str, set[str]] = {}  # unswept -> saves it must wait for
        self.direct = Repository(Objects(self.world), KEYS, clock=lambda: self.world.now)

    # --- what the actors do ------------------------------------------------------

    def start_save(self) -> None:
        self.serial += 1
        backup_id = f"b{self.serial}"
        volume = self.volumes[self.chance.randrange(2)]
        for _ in range(self.chance.randrange(4)):
            # A whole chunk, or one block, which goes into a patch.
            first = self.chance.randrange(_CHUNKS) * _BLOCKS
            count = self.chance.choice((1, _BLOCKS))
            volume[first : first + count] = [self.chance.randrange(9)] * count
        data = self.bytes_of(volume)
        parent = self.chance.choice([*self.saved, None])
        like = self.like()
        changed = None if self.chance.random() < 0.5 else self.changes(parent, data)
        self.save(backup_id, data, parent, like, changed)

    def save(
        self,
        backup_id: str,
        data: bytes,
        parent: str | None = None,
        like: tuple[str, ...] = (),
        changed: list[tuple[int, int]] | None = None,
    ) -> Actor:
        known = tuple(self.collections) if self.service else ()
        self.content[backup_id] = data

        def work(repository: Repository) -> None:
            save_bytes(
                repository,
                data,
                backup_id,
                parent,
                pending_deletion=known,
                like=like,
                changed=changed,
            )
            self.saved[backup_id] = data

        actor = self.scheduler.start(f"save {backup_id}", work)
        self.saving[backup_id] = actor
        return actor

    def like(self) -> tuple[str, ...]:
        """Some backups, whatever has become of them."""
        if self.chance.random() < 0.5:
            return ()
        ever = [*self.content, "none"]
        return tuple(self.chance.sample(ever, min(len(ever), 3)))

    def changes(self, parent: str | None, data: bytes) -> list[tuple[int, int]]:
        """Where `data` differs from `parent`, and some more."""
        before = b"" if parent is None else self.content[parent]
        starts = range(0, len(data), SMALL.block)
        differ = {
            at for at in starts if before[at : at + SMALL.block] != data[at : at + SMALL.block]
        }
        differ.update(self.chance.sample(starts, self.chance.randrange(3)))
        blocks = runs(at // SMALL.block for at in differ)
        return [(first * SMALL.block, end * SMALL.block) for first, end in blocks]

    def start_restore(self) -> None:
        choices = [*self.saved, *sorted(self.deleting)]
        if choices:
            self.restore(self.chance.choice(choices))

    def restore(self, backup_id: str) -> Actor:
        def work(repository: Repository) -> None:
            try:
                data = load_bytes(repository, backup_id)
            except LunrError:
                if backup_id not in self.deleting:
                    assert self.is_damaged(backup_id)
                raise
            assert data == self.content[backup_id]

        return self.scheduler.start(f"restore {backup_id}", work)

    def bytes_of(self, volume: list[int]) -> bytes:
        return b"".join(bytes([value]) * 64 for value in volume)

    def start_delete(self) -> None:
        parents = set()
        if self.service:  # refuses to delete the parent of a running backup
            parents = {actor.what for actor in self.scheduler.actors}
        choices = [one for one in self.saved if f"save {one}" not in parents]
        if choices:
            self.forget(self.chance.choice(choices))

    def forget(self, backup_id: str) -> Actor:
        del self.saved[backup_id]
        self.deleting.add(backup_id)

        def work(repository: Repository) -> None:
            repository.delete_root(backup_id)
            self.deleted.add(backup_id)

        return self.scheduler.start(f"delete {backup_id}", work)

    def keep(self) -> list[str]:
        """All backups that are or may be there, as the service knows them."""
        if not self.service:
            return []
        return [one for one in self.content if one not in self.deleted]

    def start_collect(self) -> Actor:
        keep = self.keep()

        def work(repository: Repository) -> None:
            found = garbage.collect(repository, keep, self.grace, threads=1)
            _report(repository)
            self.hear(found)

        return self.scheduler.start("collect", work)

    def hear(self, found: garbage.MarkResult) -> None:
        """What the service does when a collection tells what it found."""
        for collection in (found.collection, *found.unswept) if self.service else ():
            if collection is not None:
                running = {one for one, actor in self.saving.items() if not actor.over}
                self.collections.setdefault(collection, running)

    def to_sweep(self) -> list[str]:
        """The collections that somebody would sweep."""
        return list(self.collections) if self.service else pending_deletion.listed(self.direct)

    def start_sweep(self) -> None:
        known = self.to_sweep()
        if not known:
            return
        collection = self.chance.choice(known)
        if self.service and any(not self.saving[one].over for one in self.collections[collection]):
            return
        self.sweep(collection)

    def sweep(self, collection: str) -> Actor:
        keep = self.keep()

        def work(repository: Repository) -> None:
            garbage.sweep(repository, collection, keep, self.grace, threads=1)
            _report(repository)
            self.collections.pop(collection, None)

        return self.scheduler.start(f"sweep {collection}", work)

    def start_verify(self) -> None:
        self.verify(self.chance.choice((None, list(self.saved))))

    def verify(self, chosen: list[str] | None) -> Actor:

        def work(repository: Repository) -> None:
            for backup_id in verify(repository, chosen, concurrency=1).damaged:
                assert backup_id in self.deleting or self.is_damaged(backup_id)

        return self.scheduler.start("verify", work)

    # --- what every life meets, as chance would hardly ever have it ---------------------

    def meet_what_matters(self) -> None:
        """Each kind of actor at its end, and each danger at its worst moment."""
        self.world.late = ()
        self.meet_a_sweep_beside_saves()
        if self.world.lag:
            self.meet_a_late_listing()
        if self.rot:
            self.meet_what_has_rotted()
        self.world.late = None
        self.check()

    def done(self, actor: Actor) -> None:
        """The actor does its work, and nobody else anything meanwhile."""
        self.scheduler.run_to(actor)
        assert actor.failure is None, actor.failure

    def held_save(self, backup_id: str, data: bytes, like: tuple[str, ...] = ()) -> Actor:
        """A save that knows what is condemned, and has stored nothing."""
        actor = self.save(backup_id, data, like=like)
        self.scheduler.run_to(actor, "put chunks/")
        assert not actor.over
        return actor

    def meet_a_sweep_beside_saves(self) -> None:
        data = _new_bytes(100)
        self.done(self.save("p", data))
        self.done(self.restore("p"))
        self.done(self.verify(["p"]))
        save = self.held_save("s", data + _new_bytes(101), like=("p",))
        self.scheduler.crash(self.held_save("w", data + _new_bytes(102), like=("p",)))
        self.done(self.forget("p"))  # only what is being saved refers to it now
        self.done(self.start_collect())
        (collection,) = self.to_sweep()
        if self.service:  # it asks for no sweep before
            self.done(save)
        self.scheduler.run_to(self.sweep(collection))
        if not save.over:
            self.done(save)
        self.check()
        late = self.held_save("t", _new_bytes(103))
        self.world.now += 2 * (LIFETIME + MARGIN) + self.grace
        self.done(self.sweep(collection))
        self.scheduler.run_to(late)
        self.check()

    def meet_a_late_listing(self) -> None:
        """A new backup is collected around before a listing shows it or its session."""
        self.world.late = ("roots/", "sessions/")
        self.done(self.save("l", _new_bytes(104)))
        self.done(self.start_collect())
        for collection in self.to_sweep():
            self.scheduler.run_to(self.sweep(collection))
        self.check()

    def meet_what_has_rotted(self) -> None:
        data = _new_bytes(105)
        self.done(self.save("r", data))
        self.world.spoil(min(one for one in self.needs("r") if one.startswith("chunks/")))
        self.done(self.verify(["r"]))
        self.done(self.save("again", data, "r"))
        assert not self.is_damaged("again")

    # --- the life ------------------------------------------------------------------

    def go(self) -> None:
        self.meet_what_matters()
        starts = [self.start_save] * 3 + [self.start_sweep] * 2
        starts += [self.start_delete, self.start_collect, self.start_verify, self.start_restore]
        for _ in range(60):
            if len(self.scheduler.actors) < 6:
                self.chance.choice(starts)()
            if self.chance.random() < self.rot:
                self.world.rot()
            for _ in range(self.chance.randrange(20)):
                if self.scheduler.actors:
                    self.scheduler.step()
            self.check()
        while self.scheduler.actors:
            self.scheduler.step()
        self.check()

    def check(self) -> None:
        """Every backup whose root is there, acknowledged or not, reads as it was.

        Or not at all, if it needs what has rotted.
        """
        for backup_id in self.backups():
            if backup_id not in self.deleting:
                try:
                    data = load_bytes(self.direct, backup_id)
                except LunrError as error:
                    assert self.is_damaged(backup_id), error
                else:
                    assert data == self.content[backup_id]
        assert self.saved.keys() <= set(self.backups())

    def backups(self) -> list[str]:
        """The ids of all that are there."""
        roots = [name for name in self.world.objects if name.startswith("roots/")]
        return [name.removeprefix("roots/") for name in roots]

    def is_damaged(self, backup_id: str) -> bool:
        """Whether something that it needs has rotted."""
        return not self.world.rotten.isdisjoint(self.needs(backup_id))

    def needs(self, backup_id: str) -> set[str]:
        """The names of what a backup needs, as far as its segments can be read."""
        root = self.direct.load_root(backup_id)
        names = {f"roots/{backup_id}"}
        for chunks, ref in self.direct.segments_of(root):
            if ref is not None:
                names.add(ref.name(Kind.SEGMENT))
                with contextlib.suppress(CorruptObject, ObjectMissing, UnsupportedFormat):
                    names.update(garbage.objects_of(*self.direct.load_segment(ref, len(chunks))))
        return names

    # --- what is left of it --------------------------------------------------------------

    def recover(self) -> None:
        """Verify finds all that is damaged, and the next backups have nothing of it."""
        self.world.now += 4 * LAG
        damaged = verify(self.direct, concurrency=1).damaged
        for backup_id in self.backups():
            try:
                load_bytes(self.direct, backup_id)
            except LunrError as error:
                assert backup_id in damaged, error
            if backup_id in damaged:
                assert self.is_damaged(backup_id)
        self.world.now += 4 * LAG
        for volume in self.volumes:
            self.serial += 1
            backup_id, parent = f"b{self.serial}", self.chance.choice([*self.backups(), None])
            data = self.content[backup_id] = self.bytes_of(volume)
            known = tuple(self.collections)
            like = tuple(self.backups())
            save_bytes(self.direct, data, backup_id, parent, pending_deletion=known, like=like)
            self.saved[backup_id] = data
            assert load_bytes(self.direct, backup_id) == data
            assert not self.is_damaged(backup_id)
        # As long as a backup has lost a segment nobody can tell what is garbage.
        for backup_id in self.backups():
            if any(
                name.startswith("segments/") for name in self.needs(backup_id) & self.world.rotten
            ):
                self.delete(backup_id)

    def end(self) -> None:
        """Nothing is left but what is needed; and nothing at all when there are no backups."""
        self.drain()
        self.check()
        needed = {name for backup_id in self.backups() for name in self.needs(backup_id)}
        there = set(self.world.objects)
        notes = {name for name in there if name.startswith("bad/")}
        lists = {name for name in there if name.startswith("condemned/")}
        assert there - notes - lists == needed & there
        assert needed - there <= self.world.rotten
        assert {quarantine.subject_of(name) for name in notes} == needed & self.world.rotten
        for collection in pending_deletion.listed(self.direct):
            left = pending_deletion.load(self.direct, collection)
            assert left is None or left.swept
            assert left is None or needed.issuperset(map(quarantine.subject_of, left.objects))
        self.save_again()
        self.world.now += 4 * LAG  # or a root that was stored just now is not listed
        for backup_id in self.backups():
            self.delete(backup_id)
        self.drain()
        assert not self.world.objects

    def save_again(self) -> None:
        """Backups of volumes in which nothing has changed store nothing, and other volumes neither.

        But for what must not be referred to.
        """
        rescued = {
            n for one in pending_deletion.listed(self.direct) for n in self.condemned_by(one)
        }
        barred = rescued | quarantine.names(self.direct)
        for parent in self.backups():
            needs = self.needs(parent)
            self.rescued += len(needs & rescued)
            if not needs.isdisjoint(barred | self.world.rotten):
                continue
            for changed in (None, []):
                self.serial += 1
                backup_id, data = f"b{self.serial}", self.content[parent]
                did = save_bytes(self.direct, data, backup_id, parent, changed=changed)
                assert did.statistics.objects_stored == 0
                self.content[backup_id] = self.saved[backup_id] = data

    def condemned_by(self, collection: str) -> set[str]:
        found = pending_deletion.load(self.direct, collection)
        return set() if found is None else set(found.objects)

    def delete(self, backup_id: str) -> None:
        self.deleting.add(backup_id)
        self.deleted.add(backup_id)
        self.saved.pop(backup_id, None)
        self.direct.delete_root(backup_id)

    def drain(self) -> None:
        """Time goes by, and whoever collects now finds a quiet repository."""
        for _ in range(4):
            self.world.now += 4 * (self.grace + LAG + 1000)
            keep = [one for one in self.keep() if f"roots/{one}" in self.world.objects]
            for collection in self.to_sweep():
                garbage.sweep(self.direct, collection, keep, self.grace, threads=1)
                self.collections.pop(collection, None)
            self.hear(garbage.collect(self.direct, keep, self.grace, threads=1))


def _new_bytes(value: int) -> bytes:
    """A chunk like no other."""
    return bytes([value]) * SMALL.chunk


def _report(repository: Repository) -> None:
    assert isinstance(repository.store, View)
    repository.store.report()


def go(
    seed: int, lag: float, grace: float, service: bool, rot: bool = True, swift: bool = False
) -> Counter[str]:
    """One life; how often each kind of actor ended how, and how many objects rotted.

    Args:
        seed: decides about everything.
        lag: seconds that listings are behind.
        grace: see :mod:`lunr.backup.repository.collect`.
        service: as the service does it, that knows every backup.
        rot: in every second life, objects rot.
        swift: reach the objects by the store class for Swift, over sockets.
    """
    with contextlib.ExitStack() as stack:
        life = Life(seed, lag, grace, service, rot)
        stack.callback(life.scheduler.kill_all)
        if swift:
            server = stack.enter_context(SwiftServer(Objects(life.world)).running())
            store = SwiftStore("test", connection_options(server.options))
            stack.callback(store.close)
            life.world.connect = lambda: store
        try:
            life.go()
            life.recover()
            life.end()
        except BaseException:
            print(f"repeat this with LUNR_SEED={seed} LUNR_INTERLEAVINGS=1")
            raise
    ends = Counter(
        f"{one.what.split()[0]} "
        + ("crashed" if one.crashed else one.failure.code if one.failure else "done")
        for one in life.scheduler.finished
    )
    ends["rotten"] = life.world.rotted
    ends["rescued"] = life.rescued
    return ends
