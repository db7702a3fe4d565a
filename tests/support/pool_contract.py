"""What every pool promises: the tests that each driver's test class inherits."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lunr.common import errors
from lunr.common.extents import Extent
from lunr.storage.pools.base import Pool, Purpose, Snapshot


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


class PoolContract:
    """What a pool promises, whatever it is made of. Takes a fixture ``pool`` that was checked.

    A pool of 16 times `size` is large enough.
    """

    #: Bytes of a volume.
    size: ClassVar[int] = 8 << 20
    #: What sizes of volumes are multiples of.
    unit: ClassVar[int] = 4096
    #: Whether a volume can be deleted while it has snapshots.
    snapshots_outlive: ClassVar[bool] = True
    #: Whether a volume can be extended while it has baselines.
    references_outlive_extend: ClassVar[bool] = True
    #: How many volumes are written full to see whether their bytes come back.
    crowd: ClassVar[int] = 8
    #: How much random work is tried: examples, steps of each.
    examples: ClassVar[int] = 40
    steps: ClassVar[int] = 25

    def test_a_new_volume_is_zeros_of_the_size_asked_for(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        assert pool.volumes() == {"v1"}
        assert pool.size("v1") == self.size
        assert pool.path("v1").read_bytes() == bytes(self.size)

    def test_create_runs_twice_and_keeps_what_was_written(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), 5, b"kept")
        pool.create("v1", self.size)
        assert pool.path("v1").read_bytes()[5:9] == b"kept"

    def test_create_refuses_an_id_that_another_size_has(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        with pytest.raises(errors.Conflict, match="v1"):
            pool.create("v1", 2 * self.size)
        assert pool.size("v1") == self.size

    def test_a_snapshot_keeps_its_moment(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), 0, b"old")
        for purpose in Purpose:
            pool.snapshot(Snapshot("v1", "s1", purpose))
        write(pool.path("v1"), 0, b"new")
        pool.snapshot(Snapshot("v1", "s1"))  # again: the first moment stays
        for purpose in Purpose:
            snapshot = Snapshot("v1", "s1", purpose)
            assert pool.path(snapshot).read_bytes()[:3] == b"old"
            assert pool.size(snapshot) == self.size
        assert pool.snapshots() == {Snapshot("v1", "s1", purpose) for purpose in Purpose}

    def test_a_clone_grows_and_leaves_its_source(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), 0, b"one")
        pool.snapshot(Snapshot("v1", "s1"))
        pool.clone("v2", Snapshot("v1", "s1"), 2 * self.size)
        pool.clone("v3", "v2", 2 * self.size)
        write(pool.path("v3"), 0, b"two")
        pool.clone("v3", "v2", 2 * self.size)  # again: nothing is lost
        assert pool.path("v2").read_bytes() == b"one" + bytes(2 * self.size - 3)
        assert pool.path("v3").read_bytes()[:3] == b"two"

    def test_a_clone_is_not_smaller_than_its_source(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        with pytest.raises(errors.Conflict):
            pool.clone("v2", "v1", self.size - self.unit)
        assert pool.volumes() == {"v1"}

    def test_what_is_not_there_is_not_found(self, pool: Pool) -> None:
        with pytest.raises(errors.NotFound, match="v9"):
            pool.path("v9")
        with pytest.raises(errors.NotFound, match="v9"):
            pool.extend("v9", self.size)
        with pytest.raises(errors.NotFound, match="v9"):
            pool.snapshot(Snapshot("v9", "s1"))
        with pytest.raises(errors.NotFound, match="v9"):
            pool.clone("v2", "v9", self.size)
        with pytest.raises(errors.NotFound, match="s9"):
            pool.clone("v2", Snapshot("v9", "s9"), self.size)
        assert not pool.volumes()
        assert not pool.snapshots()

    def test_delete_runs_twice_and_minds_snapshots(self, pool: Pool) -> None:
        snapshot = Snapshot("v1", "s1")
        pool.create("v1", self.size)
        pool.snapshot(snapshot)
        if self.snapshots_outlive:
            pool.delete("v1")
            assert not pool.volumes()
        else:
            with pytest.raises(errors.InUse, match="v1"):
                pool.delete("v1")
            assert pool.volumes() == {"v1"}
        assert pool.snapshots() == {snapshot}
        for _ in range(2):
            pool.delete_snapshot(snapshot)
        assert not pool.snapshots()
        for _ in range(2):
            pool.delete("v1")
        assert not pool.volumes()

    def test_a_backups_snapshot_becomes_a_reference_that_nobody_has_to_mind(
        self, pool: Pool
    ) -> None:
        backup = Snapshot("v1", "b1", Purpose.BACKUP)
        baseline = Snapshot("v1", "b1", Purpose.BASELINE)
        pool.create("v1", self.size)
        write(pool.path("v1"), 0, b"old")
        pool.snapshot(backup)
        for _ in range(2):
            pool.repurpose(backup, Purpose.BASELINE)
        assert pool.snapshots() == {baseline}
        assert pool.baselines().keys() == {baseline}
        assert time.time() - 3600 < pool.baselines()[baseline] < time.time() + 2
        write(pool.path("v1"), 0, b"new")
        with pytest.raises(errors.NotFound, match="b2"):
            pool.repurpose(Snapshot("v1", "b2", Purpose.BACKUP), Purpose.BASELINE)
        assert pool.path(baseline).read_bytes()[:3] == b"old"
        pool.create("v10", self.size)
        other = Snapshot("v10", "b3", Purpose.BASELINE)
        pool.snapshot(other)
        pool.extend("v1", 2 * self.size)
        assert pool.snapshots() - {baseline} == {other}
        pool.delete("v1")
        assert pool.snapshots() == {other}
        assert pool.volumes() == {"v10"}

    def test_a_snapshot_belongs_to_its_volume(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        pool.create("v2", self.size)
        pool.snapshot(Snapshot("v1", "s1"))
        pool.delete_snapshot(Snapshot("v2", "s1"))
        assert pool.snapshots() == {Snapshot("v1", "s1")}
        with pytest.raises(errors.NotFound, match="s1"):
            pool.path(Snapshot("v2", "s1"))

    def test_extend_adds_zeros_and_never_shrinks(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), self.size - 4, b"tail")
        for _ in range(2):
            pool.extend("v1", 2 * self.size)
        assert pool.path("v1").read_bytes()[self.size - 4 :] == b"tail" + bytes(self.size)
        with pytest.raises(errors.Conflict):
            pool.extend("v1", self.size)

    def test_deleted_bytes_are_never_seen_again(self, pool: Pool) -> None:
        secret = random.Random(1).randbytes(4096)
        for number in range(self.crowd):  # most of the pool has held the secret
            pool.create(f"old{number}", self.size)
            with pool.path(f"old{number}").open("r+b") as file:
                file.write(secret * (self.size // len(secret)))
                os.fsync(file.fileno())
        for number in range(self.crowd):
            pool.delete(f"old{number}")
        pool.create("new", self.size)
        pool.extend("new", self.crowd * self.size)
        assert pool.path("new").read_bytes() == bytes(self.crowd * self.size)

    @pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a.b", "-x", "x\n", "x" * 65])
    def test_no_id_leads_out_of_the_pool(self, pool: Pool, bad: str) -> None:
        for call in (
            lambda: pool.create(bad, self.size),
            lambda: pool.delete(bad),
            lambda: pool.path(bad),
            lambda: pool.snapshot(Snapshot(bad, "s")),
            lambda: pool.delete_snapshot(Snapshot("v", bad)),
        ):
            with pytest.raises(errors.InvalidField):
                call()

    def test_capacity_is_of_this_machine(self, pool: Pool) -> None:
        capacity = pool.capacity()
        assert 0 < capacity.free_bytes <= capacity.capacity_bytes

    def test_changed_covers_the_truth(self, pool: Pool) -> None:
        chance = random.Random(2)
        pool.create("v1", self.size)
        _scatter(pool.path("v1"), self.size, chance)
        old, new = Snapshot("v1", "s1"), Snapshot("v1", "b1", Purpose.BACKUP)
        pool.snapshot(old)
        _scatter(pool.path("v1"), self.size, chance)
        pool.extend("v1", 2 * self.size)
        pool.snapshot(new)
        write(pool.path("v1"), 0, b"later")
        before = pool.path(old).read_bytes()
        for subject in (new, "v1"):
            extents = pool.changed(old, subject)
            if extents is not None:
                check_covers(extents, before, pool.path(subject).read_bytes())

    def test_allocated_hides_no_written_byte(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        _scatter(pool.path("v1"), self.size, random.Random(3))
        pool.snapshot(Snapshot("v1", "s1"))
        _scatter(pool.path("v1"), self.size, random.Random(4))
        for subject in ("v1", Snapshot("v1", "s1")):
            extents = pool.allocated(subject)
            if extents is not None:
                check_covers(extents, bytes(self.size), pool.path(subject).read_bytes())

    def test_a_cancelled_clone_can_be_run_again(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), self.size - 4, b"tail")
        with self._cancelled(pool):
            pool.clone("v2", "v1", self.size, _cancel)
        told = _Told()
        pool.clone("v2", "v1", self.size, told)
        assert pool.path("v2").read_bytes() == bytes(self.size - 4) + b"tail"
        assert bool(told.ticks) == pool.slow

    def test_a_cancelled_delete_can_be_run_again(self, pool: Pool) -> None:
        pool.create("v1", self.size)
        write(pool.path("v1"), 0, b"secret")
        with self._cancelled(pool):
            pool.delete("v1", _cancel)
        told = _Told()
        pool.delete("v1", told)
        assert not pool.volumes()
        assert bool(told.ticks) == pool.slow
        pool.create("v1", self.size)
        assert pool.path("v1").read_bytes() == bytes(self.size)

    def _cancelled(self, pool: Pool) -> contextlib.AbstractContextManager[object]:
        return pytest.raises(errors.Cancelled) if pool.slow else contextlib.nullcontext()

    def test_random_work_agrees_with_a_model(self, pool: Pool) -> None:
        attributes = {
            "pool": pool,
            "unit": self.unit,
            "outlive": self.snapshots_outlive,
            "outlive_extend": self.references_outlive_extend,
        }
        machine = type("Machine", (_Machine,), attributes)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=self.steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def _cancel(_done: int, _total: int) -> None:
    raise errors.Cancelled


class _Told:
    """A tick that checks what it is told."""

    def __init__(self) -> None:
        self.ticks: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        last, _ = self.ticks[-1] if self.ticks else (0, total)
        assert last <= done <= total
        assert total > 0
        self.ticks.append((done, total))


def _scatter(path: Path, size: int, chance: random.Random) -> None:
    """Write some random pieces, the last bytes among them."""
    write(path, size - 4, chance.randbytes(4))
    for _ in range(8):
        data = chance.randbytes(chance.randrange(1, 9000))
        write(path, chance.randrange(size - len(data)), data)


def check_covers(extents: Iterable[Extent], old: bytes, new: bytes) -> None:
    """Outside of `extents`, `new` is as `old`; they are in order, and inside `new`."""
    end = 0
    for extent in [*extents, Extent(len(new), len(new))]:
        assert end <= extent.start <= extent.end <= len(new)
        assert new[end : extent.start] == old[end : extent.start]
        end = extent.end


_names = st.sampled_from(["a", "b", "c"])


def _same(one: Snapshot, other: Snapshot) -> bool:
    return (one.id, one.purpose) == (other.id, other.purpose)


class _Machine(RuleBasedStateMachine):
    """Volumes and snapshots against plain byte strings."""

    pool: ClassVar[Pool]
    unit: ClassVar[int]
    outlive: ClassVar[bool]
    outlive_extend: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, bytearray] = {}
        self.kept: dict[Snapshot, bytes] = {}

    def teardown(self) -> None:
        for snapshot in self.pool.snapshots():
            self.pool.delete_snapshot(snapshot)
        for volume in self.pool.volumes():
            self.pool.delete(volume)

    @rule(name=_names, units=st.integers(1, 6))
    def create(self, name: str, units: int) -> None:
        size = units * self.unit
        if name in self.volumes and len(self.volumes[name]) != size:
            with pytest.raises(errors.Conflict):
                self.pool.create(name, size)
        else:
            self.pool.create(name, size)
            self.volumes.setdefault(name, bytearray(size))

    @rule(name=_names, place=st.floats(0, 1), data=st.binary(min_size=1, max_size=6000))
    def write(self, name: str, place: float, data: bytes) -> None:
        room = len(self.volumes.get(name, b"")) - len(data)
        if room >= 0:
            offset = int(place * room)
            write(self.pool.path(name), offset, data)
            self.volumes[name][offset : offset + len(data)] = data

    @rule(name=_names, id_=_names, purpose=st.sampled_from(Purpose))
    def snapshot(self, name: str, id_: str, purpose: Purpose) -> None:
        snapshot = Snapshot(name, id_, purpose)
        if any(other.volume_id != name and _same(other, snapshot) for other in self.kept):
            return  # records' ids are unique
        if snapshot in self.kept:
            self.pool.snapshot(snapshot)
        elif name not in self.volumes:
            with pytest.raises(errors.NotFound):
                self.pool.snapshot(snapshot)
        else:
            self.pool.snapshot(snapshot)
            self.kept[snapshot] = bytes(self.volumes[name])

    @rule(new=_names, name=_names, id_=_names, purpose=st.sampled_from([None, *Purpose]))
    def clone(self, new: str, name: str, id_: str, purpose: Purpose | None) -> None:
        source = name if purpose is None else Snapshot(name, id_, purpose)
        if isinstance(source, Snapshot):
            content = self.kept.get(source)
        else:
            content = bytes(self.volumes[source]) if source in self.volumes else None
        if new in self.volumes or content is None:
            return
        self.pool.clone(new, source, len(content) + self.unit)
        self.volumes[new] = bytearray(content + bytes(self.unit))

    @rule(name=_names, units=st.integers(1, 8))
    def extend(self, name: str, units: int) -> None:
        size = units * self.unit
        if name not in self.volumes:
            with pytest.raises(errors.NotFound):
                self.pool.extend(name, size)
        elif size < len(self.volumes[name]):
            with pytest.raises(errors.Conflict):
                self.pool.extend(name, size)
        else:
            self.pool.extend(name, size)
            if size > len(self.volumes[name]) and not self.outlive_extend:
                self.forget_references(name)
            self.volumes[name] += bytes(size - len(self.volumes[name]))

    def forget_references(self, name: str) -> None:
        for snapshot in list(self.kept):
            if snapshot.volume_id == name and snapshot.purpose is Purpose.BASELINE:
                del self.kept[snapshot]

    @rule(name=_names, id_=_names)
    def repurpose(self, name: str, id_: str) -> None:
        backup = Snapshot(name, id_, Purpose.BACKUP)
        baseline = Snapshot(name, id_, Purpose.BASELINE)
        if baseline in self.kept or backup not in self.kept:
            return
        if any(_same(other, baseline) for other in self.kept):
            return
        self.pool.repurpose(backup, Purpose.BASELINE)
        self.kept[baseline] = self.kept.pop(backup)

    @rule(name=_names)
    def delete(self, name: str) -> None:
        users = (one for one in self.kept if one.purpose is not Purpose.BASELINE)
        refused = not self.outlive and any(one.volume_id == name for one in users)
        with pytest.raises(errors.InUse) if refused else contextlib.nullcontext():
            self.pool.delete(name)
        self.forget_references(name)
        if not refused:
            self.volumes.pop(name, None)

    @rule(name=_names, id_=_names, purpose=st.sampled_from(Purpose))
    def delete_snapshot(self, name: str, id_: str, purpose: Purpose) -> None:
        snapshot = Snapshot(name, id_, purpose)
        self.pool.delete_snapshot(snapshot)
        self.kept.pop(snapshot, None)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.volumes() == self.volumes.keys()
        assert self.pool.snapshots() == self.kept.keys()
        for name, content in self.volumes.items():
            assert self.pool.path(name).read_bytes() == content
        for snapshot, kept in self.kept.items():
            assert self.pool.path(snapshot).read_bytes() == kept
