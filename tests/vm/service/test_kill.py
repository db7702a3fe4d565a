"""kill -9 of the node before any step of what it does, on LVM: nothing is left over.

The steps of each work are counted in a run that nobody interrupts, then it is
killed before some of them. A run takes a few works and one step of each by
chance; it prints the seed, and ``LUNR_CRASH_SEED`` repeats it.
``LUNR_CRASH_STEPS=N`` tries N steps of every work, ``LUNR_CRASH_STEPS=all`` all
but those that only repeat others. See docs/development.md.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lunr.storage.pools.logical_volumes import Role, tags_for
from tests.support.initiator import sh
from tests.vm.service.running import GROUP, World

#: How many steps of each work are tried: a number, "all", or nothing.
STEPS = os.environ.get("LUNR_CRASH_STEPS", "")
SEED = int(os.environ.get("LUNR_CRASH_SEED", random.randrange(1 << 32)))
MIB = 1 << 20


def nothing() -> None:
    """Nothing to do."""


def both(*parts: Callable[[], object]) -> Callable[[], object]:
    """One after the other."""

    def run() -> None:
        for part in parts:
            part()

    return run


@dataclass
class Case:
    """Some work of the node's that can be done again and again.

    Attributes:
        begin: leads to the work; `prepare` and `undo` are what goes before and after it.
        after: the work in whose middle the node is killed first, so that it comes to this.
    """

    begin: Callable[[], object]
    prepare: Callable[[], object] = nothing
    undo: Callable[[], object] = nothing
    after: str = ""


class Life:
    """A volume, and what happens to it and to others."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, world.client
        self.base = self.client.volumes.create(size=1).id
        self.idle()
        self.new = self.backup = self.snapshot = ""

    def cases(self) -> dict[str, Case]:
        """By the name of the work (see tests.support.nursery)."""
        client = self.client
        delete = Case(self.delete, prepare=self.create)
        save = Case(self.save, prepare=self.write, undo=self.delete_backup)
        clone = Case(lambda: self.create(source_volume=self.base), undo=self.delete)
        return {
            "volume.create": Case(self.create, undo=self.delete),
            "volume.delete": delete,
            "volume.delete/2": Case(self.delete, prepare=self.create, after="volume.delete"),
            "volume.extend": Case(
                lambda: client.volumes.extend(self.new, 2), prepare=self.create, undo=self.delete
            ),
            "volume.clone": clone,
            "volume.clone/2": Case(clone.begin, undo=self.delete, after="volume.clone"),
            "volume.restore": Case(self.restore, prepare=self.save_once, undo=self.delete),
            "volume.fill": Case(self.restore, prepare=self.save_once, undo=self.delete),
            "snapshot.create": Case(self.take, undo=self.drop),
            "snapshot.delete": Case(self.drop, prepare=self.take),
            "backup.save": save,
            "backup.save/2": Case(save.begin, save.prepare, save.undo, after="backup.save"),
            "export.create": Case(self.export, undo=self.unexport),
            "export.delete": Case(self.unexport, prepare=self.export),
            # What a backup leaves that was killed, and an export, is there at that start.
            "start": Case(
                self.save,
                prepare=both(self.write, self.export),
                undo=both(self.delete_backup, self.unexport),
                after="backup.save",
            ),
            "removals": Case(self.come_back),
            "wiper": Case(self.drop, prepare=both(self.take, self.idle, self.write)),
        }

    def idle(self) -> None:
        """Wait until all is done."""
        self.world.wait_idle()

    def end(self) -> None:
        """Delete what is left."""
        if self.backup:
            self.delete_backup()
        self.client.volumes.delete(self.base)
        self.idle()

    def write(self) -> None:
        """Other bytes than before, at the beginning and near the end."""
        with Path(f"/dev/{GROUP}/volume-{self.base}").open("r+b") as file:
            for place in (0, 1000 * MIB):
                file.seek(place)
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())

    def create(self, **source: Any) -> None:
        self.new = self.client.volumes.create(size=1, **source).id

    def delete(self) -> None:
        self.client.volumes.delete(self.new)

    def save(self) -> None:
        self.backup = self.client.backups.create(self.base).id

    def save_once(self) -> None:
        if not self.backup:
            self.write()
            self.save()

    def delete_backup(self) -> None:
        self.client.backups.delete(self.backup)
        self.backup = ""

    def restore(self) -> None:
        self.create(backup=self.backup)

    def take(self) -> None:
        self.snapshot = self.client.snapshots.create(self.base).id

    def drop(self) -> None:
        self.client.snapshots.delete(self.snapshot)

    def export(self) -> None:
        self.client.exports.create(self.base, initiator="iqn.2026-11.x:y")

    def unexport(self) -> None:
        self.client.exports.delete(self.base)

    def come_back(self) -> None:
        """A volume that was deleted is there again, as when LVM's metadata are restored."""
        self.create()
        self.idle()
        self.delete()
        self.idle()
        self.world.node.kill()
        name, tags = f"volume-{self.new}", tags_for(Role.VOLUME, self.new, self.new)
        if self.world.service.settings.pool == "thin":
            sh("lvcreate", "-qqy", "-kn", "-V", "1G", "-T", f"{GROUP}/pool", "-n", name, *tags)
        else:
            sh("lvcreate", "-qqy", "-Wn", "-Zn", "-L", "1G", "-n", name, *tags, GROUP)
        self.world.node.start()


WORKS = [
    *("volume.create", "volume.delete", "volume.delete/2", "volume.extend", "volume.clone"),
    *("volume.clone/2", "volume.restore", "volume.fill", "snapshot.create", "snapshot.delete"),
    *("backup.save", "backup.save/2", "export.create", "export.delete", "start", "removals"),
    "wiper",
]
#: Without a word, some.
CHOSEN = WORKS if STEPS else sorted(random.Random(SEED).sample(WORKS, 2))

_NUMBERS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]*\d[0-9a-f]*\b|\d+|tmp\w+")


def worth(steps: Sequence[str]) -> list[int]:
    """The numbers of all steps but those in the middle of a long repetition.

    Steps that are the same but for numbers, between the same steps, are one: of those the first,
    the last and one in the middle.
    """
    shapes = ["", *(_NUMBERS.sub("#", step) for step in steps), ""]
    places: dict[tuple[str, ...], list[int]] = {}
    for number in range(1, len(steps) + 1):
        places.setdefault(tuple(shapes[number - 1 : number + 2]), []).append(number)
    return sorted(
        {n for same in places.values() for n in (same[0], same[len(same) // 2], same[-1])}
    )


def test_only_what_repeats_is_left_out() -> None:
    wipe = [step for done in range(100) for step in (f"say that {done}m of 99", "wait for _zero")]
    steps = ["lvs", "lvrename wipe-a1", "lvs", *wipe, "lvs", "lvremove wipe-a1"]
    assert worth(steps) == [1, 2, 3, 4, 5, 6, 103, 104, 201, 202, 203, 204, 205]


def drawn(steps: Sequence[str], rng: random.Random) -> list[int]:
    """The numbers of the steps to try."""
    points = worth(steps)
    if STEPS == "all":
        return points
    return sorted(rng.sample(points, min(len(points), int(STEPS or 1))))


@pytest.mark.timeout(4 * 3600 if STEPS else 600)
@pytest.mark.parametrize("work", CHOSEN)
def test_killed_before_every_step(
    world: World, work: str, capsys: pytest.CaptureFixture[str]
) -> None:
    life = Life(world)
    case = life.cases()[work]
    dooms: dict[str, int] = {}

    def run(doomed: Case, name: str, steps: Mapping[str, int]) -> None:
        doomed.prepare()
        life.idle()
        world.do(name, doomed.begin, steps)
        world.check()
        doomed.undo()
        life.idle()

    def tell(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    if case.after:
        run(life.cases()[case.after], case.after, {})
        dooms[case.after] = len(world.node.steps(case.after)) // 2
    steps: list[str] = []
    if work != "wiper" or world.service.settings.pool != "thin":  # which wipes nothing
        run(case, work, dooms)
        steps = world.node.steps(work)
        assert steps
    points = drawn(steps, random.Random(SEED))
    tell(f"\n{work}: {len(steps)} steps, {len(points)} are tried; LUNR_CRASH_SEED={SEED}")
    for step in points:
        is_killed = False
        while not is_killed:
            assert step, "it was not killed at its first step either"
            run(case, work, {**dooms, work: step})
            is_killed = any(what.startswith(f"{work}: ") for what in world.deaths)
            tell(f"{step:>5}  {' + '.join(world.deaths) or 'it had fewer steps this time'}")
            step //= 2  # how often it tells its progress is up to the clock
    life.end()
    world.check()
    tell(f"{work}: killed before {len(points)} steps; nothing was left over")
