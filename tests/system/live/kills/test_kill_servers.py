"""The store, or the target of a disk, is killed at every step of a backup.

It is there again soon, or only when the backup has ended. See :mod:`tests.system.live.steps` for
which steps.
"""

from __future__ import annotations

import contextlib
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lunr.backup.errors import StoreUnavailable
from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.backup import groups
from lunr.live.backup.groups import Group
from lunr.live.qemu import exports
from tests.support.faults.relay import MortalSwift
from tests.support.services import Tgtd
from tests.system.live.conftest import FarAndNear, Vault
from tests.system.live.machines import Machine
from tests.system.live.steps import SEED, TRIED, Steps, drawn, patient
from tests.system.live.test_backup import kept, ways


class Trial:
    """Backups of a machine to which something happens, one after the other.

    Messages to QEMU are steps, too, if `messages`; else only calls to the store.
    """

    def __init__(self, machine: Machine, vault: Vault, *, messages: bool) -> None:
        self.machine, self.vault, self._messages = machine, vault, messages
        self.draw = random.Random(SEED)
        machine.write_some(self.draw, 20)
        self._last = self._complete(vault.backup(machine))
        self._known = {self._last.group_id}

    def points(self) -> Iterator[tuple[int, bool]]:
        """The steps to try, and whether the server is back soon."""
        steps = drawn(0, self._count() * 9 // 10)  # another one may take less
        if TRIED:
            return ((step, soon) for step in steps for soon in (True, False))
        return zip(steps, (True, False), strict=True)

    def _count(self) -> int:
        steps, failed = self.backup(self.vault, -1, lambda: None)
        self.check(failed is not None)
        return steps.taken

    def backup(
        self, vault: Vault, at: int, act: Callable[[], None]
    ) -> tuple[Steps, LunrError | None]:
        """One with `act` at the step `at`; how it failed, if it did."""
        self.machine.write_some(self.draw, 3)
        steps = Steps(at, act, self.draw)
        failed: LunrError | None = None
        with pytest.MonkeyPatch.context() as patch:
            if self._messages:
                steps.watch(patch)
            try:
                group = vault.backup(self.machine, steps.before, concurrency=1)
            except LunrError as error:
                failed = error
                print(f"  {error.code}: {error}")
            steps.join()
        if failed is None:
            self._last = group
        return steps, failed

    def check(self, failed: bool) -> None:
        """What holds after a backup, `failed` or not, and that the next one has what changed."""
        self.machine.assert_untouched()
        names = [disk.name for disk in self.machine.disks]
        assert self.machine.bitmaps() == dict.fromkeys(names, kept(self._last))
        for group in groups.listed(self.vault.repository):
            if group.group_id not in self._known:  # also one whose end nobody acknowledged
                self._complete(group)
                self._known.add(group.group_id)
        assert self._last.group_id in self._known
        if failed:
            self.machine.write_some(self.draw, 3)
            self._last = self._complete(self.vault.backup(self.machine))
            assert set(ways(self._last).values()) == {"incremental"}
            self._known.add(self._last.group_id)

    def _complete(self, group: Group) -> Group:
        assert self.vault.restored(group) == self.machine.contents()
        return group


@patient
def test_swift_is_killed(machine: Machine, tmp_path: Path, mortal_swift: MortalSwift) -> None:
    place = f"swift:live-{uuid.uuid4().hex[:12]}"

    @contextlib.contextmanager
    def opened(retries: int) -> Iterator[Vault]:
        vault = Vault(tmp_path, place, {**mortal_swift.access, "timeout": 5, "retries": retries})
        yield vault
        vault.store.close()

    near = machine.disks[0]
    returns: list[threading.Timer] = []

    def kill() -> None:
        mortal_swift.kill()
        machine.write(near, 0, 512, near.content[0])  # the guest goes on
        if soon:
            returns.append(threading.Timer(0.5, mortal_swift.start))
            returns[-1].start()

    with opened(0) as hasty, opened(6) as patient_one:
        # Between two calls to it, it is all the same when it dies.
        trial = Trial(machine, patient_one, messages=False)
        for step, soon in trial.points():
            steps, failed = trial.backup(patient_one if soon else hasty, step, kill)
            if not steps.what:
                break
            if soon:
                returns[-1].join()
            else:
                mortal_swift.start()
            assert isinstance(failed, StoreUnavailable | None)
            assert not (soon and failed)
            trial.check(failed is not None)


@patient
def test_a_target_is_killed(
    tgtd: Tgtd, far_and_near: FarAndNear, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, far, near = far_and_near
    returns: list[threading.Timer] = []

    def come_back() -> None:
        tgtd.start()
        far.serve()

    def kill() -> None:
        tgtd.kill()
        machine.write(near, 0, 512, near.content[0])  # on its other disk the guest goes on
        returns.append(threading.Timer(away, come_back))
        returns[-1].start()

    try:
        trial = Trial(machine, vault, messages=True)
        for step, soon in trial.points():
            away = 0.5 if soon else 3.0
            monkeypatch.setattr(exports, "_PATIENCE", 30.0 if soon else 1.0)
            steps, failed = trial.backup(vault, step, kill)
            if not steps.what:
                break
            returns[-1].join()
            machine.write(far, 0, 512, far.content[0])  # when QEMU has logged in again
            assert isinstance(failed, errors.ExportLost | errors.MonitorSilent | None)
            assert not (soon and failed)
            trial.check(failed is not None)
    finally:
        for timer in returns:
            timer.join()
