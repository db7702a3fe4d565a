"""Snapshots of volumes that are being filled, and what is made from them: always the right bytes.

``LUNR_LACKING_SEEDS`` is how many histories are tried, ``LUNR_LACKING_SEED`` the first's number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common import units
from lunr.storage.agent.agent import Agent
from lunr.storage.pools.base import Purpose, Snapshot
from lunr.storage.restore.process import attach
from lunr.storage.restore.snapshot_gaps import SnapshotStateLost
from tests.support.services import Tgtd, need_fuse
from tests.support.thorough import steps
from tests.support.waiting import wait_until
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import Place, own_folder
from tests.system.storage.test_crashes import SAVE, STORED, victim

MIB = units.MIB
SIZE = 24 * MIB
SEEDS = int(os.environ.get("LUNR_LACKING_SEEDS", "1"))
FIRST = int(os.environ.get("LUNR_LACKING_SEED", "1"))


class Ground:
    """A node with a backup `b1`, volumes that are filled from it, and copies to compare with.

    Attributes:
        volumes: what each volume must hold.
        snapshots: the volume, the backup that it needs and what each snapshot must hold.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.api = ContractApi()
        self.agent: Agent
        self.volumes: dict[str, bytearray] = {}
        self.snapshots: dict[str, tuple[str, str | None, bytes]] = {}
        self._count = 0
        self.start()
        rng = random.Random(7)
        self.data = rng.randbytes(9 * MIB) + bytes(6 * MIB) + rng.randbytes(SIZE - 15 * MIB)
        self.api.do("volume.create", "v1", "v1", size_bytes=SIZE)
        self.agent.node.pool.path("v1").write_bytes(self.data)
        self.api.do("backup.save", "v1", "b1", **SAVE)
        self.api.do("volume.delete", "v1", "v1")

    def start(self) -> None:
        self.agent = self.place.agent(self.api.url)
        self.agent.start()

    def stop(self, detach: bool = False) -> None:
        self.agent.stop(detach)

    def end(self) -> None:
        self.stop(detach=True)
        self.api.stop()

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    # --- what is done to it --------------------------------------------------------------

    def restore(self) -> str:
        id = self.name("r")
        self.api.do("volume.restore", id, id, size_bytes=SIZE, **STORED)
        self.volumes[id] = bytearray(self.data)
        return id

    def snapshot(self, volume: str) -> str:
        id = self.name("s")
        base = self.api.do("snapshot.create", volume, id, snapshot_id=id)["base_id"]
        self.snapshots[id] = volume, base, bytes(self.volumes[volume])
        return id

    def clone(self, of: str, size: int = SIZE) -> str:
        """A volume from a snapshot, or from a volume."""
        id = self.name("c")
        volume, base, content = self.snapshots.get(of) or (of, "b1", bytes(self.volumes[of]))
        kind = "snapshot" if of in self.snapshots else "volume"
        source = {"kind": kind, "id": of, "volume_id": volume}
        fields = {"size_bytes": size, "source": source, "base_id": base, "repository": "account1"}
        self.api.do("volume.clone", id, id, **fields)
        self.volumes[id] = bytearray(content.ljust(size, b"\0"))
        return id

    def save(self, of: str, full: bool = False) -> str:
        """A backup of a snapshot, or of a volume."""
        id = self.name("b")
        volume, base, _ = self.snapshots.get(of) or (of, None, b"")
        fields = {**SAVE, "backup_id": id, "parent_id": None if full else "b1"}
        if of in self.snapshots:
            fields |= {"snapshot_id": of, "base_id": base}
        self.api.do("backup.save", volume, id, **fields)
        return id

    def delete_snapshot(self, id: str) -> None:
        volume, _, _ = self.snapshots.pop(id)
        self.api.do("snapshot.delete", volume, id, snapshot_id=id)

    def delete(self, id: str) -> None:
        del self.volumes[id]
        self.api.do("volume.delete", id, id)

    def fill(self, id: str) -> None:
        if id in self.api.filling:
            self.api.do("volume.fill", id, id, fill="eager", fill_limit_bytes=0)

    def kill(self, id: str) -> None:
        """Kill the process that serves a volume, if one does."""
        folder = own_folder(self.place.engine()) / "run" / "fillings" / id
        with contextlib.suppress(OSError):
            worker = attach(folder)
            worker.kill()
            worker.close()

    @contextlib.contextmanager
    def opened(self, id: str) -> Iterator[int]:
        """The file of a volume, as the target opens it; again when its process was killed."""

        def attempt() -> int | None:
            try:
                fd = os.open(self.agent.node.restores.path(id), os.O_RDWR)
                os.pread(fd, 1, 0)
            except OSError as error:
                assert error.errno in (errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED), error
                return None
            return fd

        fd = wait_until(attempt)
        assert fd is not None
        try:
            yield fd
        finally:
            os.close(fd)

    def write(self, id: str, offset: int, data: bytes) -> None:
        with self.opened(id) as fd:
            assert os.pwrite(fd, data, offset) == len(data)
        self.volumes[id][offset : offset + len(data)] = data

    def check(self, id: str, offset: int = 0, length: int = 1 << 40) -> None:
        with self.opened(id) as fd:
            length = min(length, len(self.volumes[id]) - offset)
            assert os.pread(fd, length, offset) == self.volumes[id][offset : offset + length], id

    # --- what must be ----------------------------------------------------------------------

    def check_backup(self, id: str, content: bytes) -> None:
        restored = self.name("r")
        fields = {**STORED, "backup_id": id}
        self.api.restore(restored, size_bytes=SIZE, **fields)
        assert self.agent.node.pool.path(restored).read_bytes() == content, id
        self.api.do("volume.delete", restored, restored)

    def check_all(self) -> None:
        """All is right: volumes as they are and full, and what is made from the snapshots."""
        for id in self.snapshots:
            self.clone(id)
        for id in self.volumes:
            self.check(id)
        for id, content in self.volumes.items():
            self.fill(id)
            assert self.agent.node.pool.path(id).read_bytes() == content, id

    def check_nothing_is_left(self) -> None:
        """When all is deleted, so is what was known of it."""
        for id in list(self.snapshots):
            self.delete_snapshot(id)
        for id in list(self.volumes):
            self.delete(id)
        left = [one for one in self.agent.node.pool.snapshots() if one.purpose is Purpose.USER]
        assert not left and not self.agent.node.pool.volumes()
        state = own_folder(self.place.engine()) / "state"
        for folder in ("fillings", "lacking"):
            assert not [*(state / folder).glob("*")]


@pytest.fixture
def ground(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Iterator[Ground]:
    need_fuse()
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    ground = Ground(Place(xfs_mount, store, tgtd.socket, tgtd.portal))
    yield ground
    ground.end()


def test_a_snapshot_keeps_its_moment_and_is_filled_from_the_backup(ground: Ground) -> None:
    id = ground.restore()
    ground.write(id, 10 * MIB + 512, b"before" * 1000)
    snapshot = ground.snapshot(id)
    assert ground.snapshots[snapshot][1] == "b1"
    ground.write(id, 10 * MIB, b"after" * 3000)
    ground.fill(id)
    larger = ground.clone(snapshot, SIZE + 4 * MIB)
    assert larger in ground.api.filling
    again = ground.snapshot(larger)
    ground.write(larger, SIZE - 100, b"over the end" * 100)
    ground.delete_snapshot(snapshot)
    ground.clone(again, SIZE + 4 * MIB)
    ground.clone(larger, SIZE + 4 * MIB)
    whole = ground.snapshot(id)
    assert ground.snapshots[whole][1] is None, "nothing was absent any more"
    ground.snapshots.pop(again)  # its clones are larger than those that check_all makes
    ground.check_all()
    ground.snapshots[again] = larger, "b1", b""
    ground.check_nothing_is_left()


@pytest.mark.parametrize("full", [False, True])
def test_backups_have_what_is_not_there(ground: Ground, full: bool) -> None:
    id = ground.restore()
    ground.write(id, 3 * MIB + 100, b"before" * 1000)
    snapshot = ground.snapshot(id)
    ground.write(id, 3 * MIB, b"after" * 3000)
    taken = [(ground.save(what, full), what) for what in (snapshot, id)]
    ground.fill(id)
    taken.append((ground.save(snapshot, full), snapshot))
    contents = {snapshot: ground.snapshots[snapshot][2], id: bytes(ground.volumes[id])}
    for backup, what in taken:
        ground.check_backup(backup, contents[what])


class History:
    """Chance, at work on a ground."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self.ground = ground
        self.rng = random.Random(seed)
        self.taken: list[tuple[str, bytes]] = []
        ground.restore()

    def step(self) -> None:
        odds = {
            self.write: 12,
            self.read: 6,
            self.snapshot: 6,
            self.clone: 5,
            self.delete: 2,
            self.kill: 3,
            self.save: 1,
            self.fill: 1,
            self.restart: 1,
        }
        self.rng.choices(list(odds), list(odds.values()))[0]()

    def volume(self) -> str:
        return self.rng.choice(list(self.ground.volumes))

    def source(self) -> str:
        snapshots = list(self.ground.snapshots)
        return self.rng.choice([*self.ground.volumes, *snapshots, *snapshots])

    def write(self) -> None:
        rng = self.rng
        for _ in range(rng.randrange(1, 8)):
            offset = rng.randrange(0, SIZE - 5 * MIB, rng.choice((1, 512, 4096)))
            length = rng.choice((7, 512, 4096, 9000, 70_000, 5 * MIB))
            self.ground.write(self.volume(), offset, rng.randbytes(length))

    def read(self) -> None:
        length = self.rng.choice((10, 4096, MIB))
        self.ground.check(self.volume(), self.rng.randrange(0, SIZE), length)

    def snapshot(self) -> None:
        self.ground.snapshot(self.volume())

    def clone(self) -> None:
        """At most five volumes: else one is deleted that has no snapshots."""
        if len(self.ground.volumes) < 5:
            self.ground.clone(self.source())
            return
        id = self.volume()
        if id not in {volume for volume, _, _ in self.ground.snapshots.values()}:
            self.ground.delete(id)

    def delete(self) -> None:
        if len(self.ground.snapshots) > 3:
            self.ground.delete_snapshot(self.rng.choice(list(self.ground.snapshots)))

    def kill(self) -> None:
        self.ground.kill(self.volume())

    def save(self) -> None:
        what = self.source()
        kept = self.ground.snapshots.get(what)
        content = bytes(self.ground.volumes[what]) if kept is None else kept[2]
        self.taken.append((self.ground.save(what, full=self.rng.random() < 0.3), content))

    def fill(self) -> None:
        self.ground.fill(self.volume())

    def restart(self) -> None:
        self.ground.stop(detach=self.rng.random() < 0.5)
        self.ground.start()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
@pytest.mark.timeout(300)
def test_whatever_happens_all_is_as_its_copy(ground: Ground, seed: int) -> None:
    history = History(ground, seed)
    for _ in range(40):
        history.step()
    ground.check_all()
    for backup, content in history.taken:
        ground.check_backup(backup, content)
    ground.check_nothing_is_left()


def test_what_is_lost_is_said_and_is_never_zeros(ground: Ground) -> None:
    id = ground.restore()
    snapshot = ground.snapshot(id)
    ground.stop(detach=True)
    state = own_folder(ground.place.engine()) / "state"
    kept = state / "lacking" / f"{id}.{snapshot}"
    good = kept.read_bytes()
    kept.write_bytes(good.replace(b"b1", b"b2"))
    source = {"kind": "snapshot", "id": snapshot, "volume_id": id}
    fields = {"size_bytes": SIZE, "source": source, "base_id": "b1", "repository": "account1"}
    for code in ("gaps_corrupt", SnapshotStateLost.code):
        ground.start()
        job = ground.api.wait(ground.api.add("volume.clone", "c1", "c1", **fields))
        assert (job["status"], job["error"]["code"]) == ("FAILED", code)
        with_base = {**SAVE, "backup_id": "b2", "snapshot_id": snapshot, "base_id": "b1"}
        job = ground.api.wait(ground.api.add("backup.save", id, "b2", **with_base))
        assert (job["status"], job["error"]["code"]) == ("FAILED", code)
        assert ground.agent.node.pool.volumes() == {id}
        ground.stop(detach=True)
        kept.unlink(missing_ok=True)
    ground.api.filling.discard("c1")
    ground.start()
    ground.check_nothing_is_left()


@pytest.mark.parametrize("kind", ["snapshot.create", "clone of a snapshot", "clone of a volume"])
@pytest.mark.timeout(300)
def test_killed_at_any_step(ground: Ground, kind: str) -> None:
    id = ground.restore()
    ground.write(id, 5 * MIB + 300, b"w" * 9000)
    snapshot = ground.snapshot(id)
    sources = {"clone of a snapshot": snapshot, "clone of a volume": id}
    for step in steps():
        ground.write(id, step * MIB, b"step" * 2000)
        content = bytes(ground.volumes[id])
        subject = ground.name("x")
        payload: dict[str, Any] = {"snapshot_id": subject}
        job_kind, volume = "snapshot.create", id
        if kind != "snapshot.create":
            source = {"kind": kind.split()[-1], "id": sources[kind], "volume_id": id}
            payload = {"size_bytes": SIZE, "source": source}
            payload |= {"base_id": "b1", "repository": "account1"}
            job_kind, volume = "volume.clone", subject
            if kind == "clone of a snapshot":
                content = ground.snapshots[snapshot][2]
        ground.stop(detach=step % 2 == 0)  # or the process that serves goes on
        job: dict[str, Any] = {"id": "j1", "lease": "l", "lease_seconds": 60, "attempt": 1}
        job |= {"kind": job_kind, "volume_id": volume, "payload": payload}
        code = victim(ground.place, job, step)
        assert code in (0, -signal.SIGKILL), f"step {step}"
        ended = code == 0
        queued = ground.api.add(job_kind, volume, subject, **payload)
        ground.start()
        done = ground.api.wait(queued)
        assert done["status"] == "DONE", f"step {step}: {done}"
        if kind == "snapshot.create":
            ground.snapshots[subject] = id, done["result"]["base_id"], content
            subject = ground.clone(subject)
        else:
            ground.volumes[subject] = bytearray(content)
        ground.check(subject)
        ground.delete(subject)
        if kind == "snapshot.create":
            ground.delete_snapshot(job["payload"]["snapshot_id"])
        assert {one.purpose for one in ground.agent.node.pool.snapshots()} == {Purpose.USER}
        assert Snapshot(id, snapshot) in ground.agent.node.pool.snapshots()
        if ended:
            break
    assert step > 3
    ground.check_all()
    ground.check_nothing_is_left()
