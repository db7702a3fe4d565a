"""kill -9 of the node before every step of every kind of job, on LVM: nothing is left over.

A run takes a few steps of each kind by chance; the seed is printed, and
``LUNR_CRASH_SEED`` repeats it. ``LUNR_CRASH_STEPS=all`` tries each of them and prints the table.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from tests.vm.node import GROUP, LONG, World

ALL = os.environ.get("LUNR_CRASH_STEPS") == "all"
#: How many steps of each kind a run tries, unless it tries all.
TRIED = int(os.environ.get("LUNR_CRASH_STEPS", "1")) if not ALL else 0
MIB = 1 << 20


class Life:
    """One volume's life, job after job; each is killed at `step` of its kind."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.client, self.rng = world, world.client, rng
        self.volume = self.backup = self.snapshot = ""
        self.copies: list[str] = []

    def jobs(self) -> list[tuple[str, Callable[[], object]]]:
        """(kind, what begins it), in an order in which each can be done."""
        client = self.client
        return [
            ("volume.create", self._create),
            (
                "export.create",
                lambda: client.exports.create(self.volume, initiator="iqn.2026-11.x:y"),
            ),
            ("backup.save", self._save),
            ("snapshot.create", self._snapshot),
            ("volume.clone", lambda: self._copy(snapshot=self.snapshot)),
            ("snapshot.delete", lambda: client.snapshots.delete(self.snapshot)),
            ("volume.delete", lambda: client.volumes.delete(self.copies.pop())),
            # Only now: a thick volume in use can't be extended while it has snapshots.
            ("volume.extend", lambda: client.volumes.extend(self.volume, 2)),
            ("export.delete", lambda: client.exports.delete(self.volume)),
            ("volume.delete", lambda: client.volumes.delete(self.volume)),
            ("volume.restore", lambda: self._copy(backup=self.backup)),
            ("volume.fill", lambda: self._copy(backup=self.backup)),
        ]

    def end(self) -> None:
        """Delete what is left."""
        for id in self.copies:
            self.client.volumes.delete(id)
        self.client.backups.delete(self.backup)
        wait_until(self.world.is_idle, LONG, "the end of all", 0.2)

    def _create(self) -> None:
        self.volume = self.client.volumes.create(size=1).id

    def _save(self) -> None:
        device = Path(f"/dev/{GROUP}/volume-{self.volume}")
        with device.open("r+b") as file:
            file.write(self.rng.randbytes(4 * MIB))
            os.fsync(file.fileno())
        self.backup = self.client.backups.create(self.volume).id

    def _snapshot(self) -> None:
        self.snapshot = self.client.snapshots.create(self.volume).id

    def _copy(self, **source: Any) -> None:
        self.copies.append(self.client.volumes.create(**source).id)


@pytest.mark.timeout(7200 if ALL else 1500)
def test_killed_before_every_step(world: World) -> None:
    seed = int(os.environ.get("LUNR_CRASH_SEED", random.randrange(1 << 32)))
    print(f"LUNR_CRASH_SEED={seed}")
    rng = random.Random(seed)
    left: dict[str, list[int]] = {}
    number = 0
    while number == 0 or any(left.values()):
        number += 1
        life = Life(world, rng)
        for kind, begin in life.jobs():
            steps = left.setdefault(
                kind, list(range(1, 60)) if ALL else sorted(rng.sample(range(1, 6), TRIED))
            )
            if not world.do(kind, steps.pop(0) if steps else 1000, begin):
                steps.clear()  # it has no more steps
            world.check()
        life.end()
        world.check()
    counts: dict[str, int] = {}
    for kind, step, what in world.deaths:
        counts[kind] = counts.get(kind, 0) + 1
        print(f"{kind:<16} {step:>3}  {what}")
    print(f"killed {len(world.deaths)} times: {counts}; nothing was left over")
    assert len(counts) >= 4  # some kinds have fewer steps than were drawn
