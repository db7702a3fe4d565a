"""A walk at random: whatever was done to the disks, each backup is what they were.

``LUNR_LIVE_WALK`` says how many times all kinds of steps are taken, in an order by chance, and
``LUNR_LIVE_SEED`` which way; a failure tells it.
"""

from __future__ import annotations

import os
import random

import pytest

from lunr.backup.errors import StoreUnavailable
from lunr.live.backup.groups import Group
from tests.support.thorough import examples
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Disk, Machine
from tests.system.live.test_backup import ways

ROUNDS = int(os.environ.get("LUNR_LIVE_WALK") or examples(3, 60))
SEED = os.environ.get("LUNR_LIVE_SEED") or str(random.randrange(1 << 32))

#: What qcow2 shrinks by: the rest of a cluster would come back when it grows.
_CLUSTER = 64 << 10


class Walk:
    """A machine, what its disks should have, and the backups that were made."""

    def __init__(self, machine: Machine, vault: Vault) -> None:
        self.machine, self.vault = machine, vault
        self.draw = random.Random(SEED)
        self.made: list[tuple[Group, dict[str, bytes]]] = []
        #: Whether each disk may be incremental: it has had a backup since it was last resized, or
        #: QEMU was started.
        self.known = {disk.name: False for disk in machine.disks}

    def write(self) -> None:
        self.machine.write_some(self.draw, self.draw.randrange(1, 8))

    def resize(self) -> None:
        """Shrink a disk, or let it grow, or both; mostly with writes between."""
        disk = self.draw.choice(self.machine.disks)
        was = len(disk.content)
        step = _CLUSTER if disk.kind == "qcow2" else 512
        smaller = self.draw.randrange(4 * MIB, was + 1) // step * step
        larger = was + 512 * self.draw.randrange(1, 4096)
        ways = [[smaller], [larger], [smaller, was], [larger, was // step * step, was]]
        for size in self.draw.choice(ways):
            self._resize(disk, size)
            if self.draw.random() < 0.5:
                self.write()
        self.known[disk.name] = False

    def _resize(self, disk: Disk, size: int) -> None:
        node = {"node-name": f"node-{disk.name}", "size": size}
        self.machine.guest.execute("block_resize", node)
        disk.content = disk.content[:size] + bytes(max(0, size - len(disk.content)))

    def restart(self) -> None:
        for disk in self.machine.disks:  # a guest that writes without a flush may lose it
            self.machine.io(disk, "flush")
        self.machine.kill()
        self.machine.start()
        self.known = dict.fromkeys(self.known, False)

    def fail(self) -> None:
        """A backup that the store lets fail."""
        left = self.draw.randrange(6)

        def fail(call: str, _name: str) -> None:
            nonlocal left
            left -= call == "put"
            if left < 0:
                raise StoreUnavailable(store="here", reason="it is away.")

        with pytest.raises(StoreUnavailable):
            self.vault.backup(self.machine, fail)
        self.machine.assert_untouched()

    def backup(self) -> None:
        at_cut = self.machine.contents()
        left = self.draw.choice([0, 0, 2])

        def write(call: str, _name: str) -> None:
            nonlocal left
            if call == "put" and left > 0:  # the first object is put after the cut
                left -= 1
                self.write()

        group = self.vault.backup(self.machine, write, concurrency=1)
        for name, way in ways(group).items():
            assert not self.known[name] or way == "incremental", name
        assert self.vault.restored(group) == at_cut
        self.made.append((group, at_cut))
        self.known = dict.fromkeys(self.known, True)

    def go(self, rounds: int) -> None:
        """Take each kind of step in each of so many rounds."""
        steps = [self.write] * 3 + [self.backup] * 4 + [self.resize, self.fail, self.restart]
        for _ in range(rounds):
            self.draw.shuffle(steps)
            for step in steps:
                step()
        for group, contents in self.made[-20:]:
            assert self.vault.restored(group) == contents


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_each_backup_is_what_the_disks_were(machine: Machine, vault: Vault) -> None:
    walk = Walk(machine, vault)
    try:
        walk.go(ROUNDS)
    except BaseException:
        print(f"LUNR_LIVE_SEED={SEED}")
        raise
