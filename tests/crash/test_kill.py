"""Kill -9 of any part in the middle of any kind of job: everything ends by itself, nothing is left.

Each round starts one job, kills one part after a random while, and waits until
the job is over. The seed is printed, and `LUNR_CRASH_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lunr.backup import stores
from lunr.client import Client
from lunr.client.errors import ApiError
from lunr.common import units
from tests.support.waiting import wait_until
from tools.demos.stage import Lunr

ROUNDS = int(os.environ.get("LUNR_CRASH_ROUNDS", "24"))
VICTIMS = ("api", "storage", "worker", "tgtd", "orbit")
OVER = ("DONE", "FAILED", "CANCELLED")
INITIATOR = "iqn.2026-11.io.lunr.crash:initiator"


class Round:
    """Begins jobs of every kind on what there is."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self.client = client
        self.rng = rng

    def volume(self) -> str:
        """A volume that can be used and is not exported."""
        for volume in self.client.volumes.list(status="ACTIVE"):
            if volume.export_status is None and volume.job_id is None and volume.name == "":
                return volume.id
        return self.client.volumes.wait(self.client.volumes.create(size=1).id, timeout=60).id

    def backup_of_data(self) -> str:
        """An AVAILABLE backup."""
        found = next(iter(self.client.backups.list(status="AVAILABLE")), None)
        if found is None:
            found = self.client.backups.create(self.client_data_volume())
            found = self.client.backups.wait(found.id, timeout=120)
        return found.id

    def client_data_volume(self) -> str:
        """The volume that holds data."""
        return next(iter(self.client.volumes.list(name="data"))).id

    def create(self) -> None:
        self.client.volumes.create(size=1)

    def extend(self) -> None:
        id = self.volume()
        self.client.volumes.extend(id, self.client.volumes.get(id).size + 1)

    def snapshot(self) -> None:
        self.client.snapshots.create(self.client_data_volume())

    def clone(self) -> None:
        self.client.volumes.create(source_volume=self.client_data_volume())

    def export(self) -> None:
        self.client.exports.create(self.volume(), initiator=INITIATOR, ip="127.0.0.1")

    def detach(self) -> None:
        id = self.volume()
        self.client.exports.create(id, initiator=INITIATOR)
        self.client.exports.wait(id, timeout=60)
        self.client.exports.delete(id)

    def backup(self) -> None:
        self.client.backups.create(self.client_data_volume(), full=self.rng.random() < 0.5)

    def restore(self) -> None:
        self.client.volumes.create(backup=self.backup_of_data())

    def verify(self) -> None:
        self.client.backups.verify(self.backup_of_data())

    def delete_backup(self) -> None:
        id = self.client.backups.create(self.client_data_volume()).id
        self.client.backups.wait(id, timeout=120)
        self.client.backups.delete(id)

    def delete(self) -> None:
        self.client.volumes.delete(self.volume())

    def collect(self) -> None:
        self.client.admin.collect(self.client.account)


def settle(client: Client) -> None:
    """Wait until no job is queued or running."""
    deadline = time.monotonic() + 120
    while left := [job for job in client.jobs.list() if job.status not in OVER]:
        assert time.monotonic() < deadline, f"not over within 120 s: {left}"
        time.sleep(0.1)


def delete_all(client: Client) -> None:
    """Delete everything that the account has, whatever its state."""
    for volume in client.volumes.list():
        if volume.export_status is not None:
            client.exports.delete(volume.id, force=True)
    settle(client)
    for snapshot in client.snapshots.list():
        client.snapshots.delete(snapshot.id)
    for backup in client.backups.list():
        client.backups.delete(backup.id)
    settle(client)
    for volume in client.volumes.list():
        client.volumes.delete(volume.id)
    settle(client)


def files_left(root: Path) -> list[str]:
    """Files of volumes and snapshots in the pool."""
    return [
        str(p)
        for p in (root / "pool").rglob("*")
        if p.is_file() and p.name not in ("pool.img", "lock")
    ]


def test_kill_any_part_in_any_job(lunr: Lunr, client: Client, tmp_path: Path) -> None:
    seed = int(os.environ.get("LUNR_CRASH_SEED", random.randrange(1 << 32)))
    print(f"LUNR_CRASH_SEED={seed}")
    rng = random.Random(seed)
    data = client.volumes.wait(client.volumes.create(size=1, name="data").id, timeout=60)
    image = next((lunr.root / "pool").rglob(f"*{data.id}*"))
    with image.open("r+b") as file:
        file.write(rng.randbytes(64 * units.MIB))
    round = Round(client, rng)
    kinds: list[Callable[[], None]] = [
        *(round.create, round.extend, round.snapshot, round.clone, round.export, round.detach),
        *(round.backup, round.restore, round.verify, round.delete_backup, round.delete),
        round.collect,
    ]
    log = []
    for number in range(ROUNDS):
        kind = kinds[number % len(kinds)]
        victim = rng.choice(VICTIMS)
        if kind in (round.backup, round.restore, round.verify) and victim in ("tgtd", "orbit"):
            victim = rng.choice(("worker", "storage", "api"))
        kind()
        time.sleep(rng.uniform(0, 0.3))
        pid = lunr.parts().get(victim)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        log.append(f"{kind.__name__}: {victim} {'killed' if pid else 'was not there'}")
        settle(client)
        for volume in client.volumes.list():
            assert volume.status == "ACTIVE", (log, volume)
        for backup in client.backups.list():
            assert backup.status == "AVAILABLE", (log, backup)
        for snapshot in client.snapshots.list():
            assert snapshot.status == "AVAILABLE", (log, snapshot)
    print("\n".join(log))
    for backup in client.backups.list():
        client.jobs.wait(client.backups.verify(backup.id).id, timeout=120)
    delete_all(client)
    client.admin.collect(client.account, wait=True, timeout=60)
    settle(client)
    assert files_left(lunr.root) == []
    store = stores.open_store(f"files:{lunr.root}/store", client.account)
    assert [name for name, _ in store.list("")] == []
    wait_until(lambda: "worker" not in lunr.parts(), what="no engine worker is left")


def test_power_cut_in_the_middle_of_everything(lunr: Lunr, client: Client) -> None:
    data = client.volumes.wait(client.volumes.create(size=1, name="data").id, timeout=60)
    image = next((lunr.root / "pool").rglob(f"*{data.id}*"))
    with image.open("r+b") as file:
        file.write(os.urandom(64 * units.MIB))
    round = Round(client, random.Random(0))
    first = round.backup_of_data()
    for _ in range(3):
        for begin in (round.create, round.clone, round.backup, round.restore, round.snapshot):
            begin()
        time.sleep(random.uniform(0, 0.5))
        lunr.kill()
        lunr.start()
        lunr.wait_until_up()
        settle(client)
        assert {v.status for v in client.volumes.list()} == {"ACTIVE"}
        assert {b.status for b in client.backups.list()} == {"AVAILABLE"}
    client.jobs.wait(client.backups.verify(first).id, timeout=120)
    try:
        delete_all(client)
    except ApiError as error:
        raise AssertionError(error.reason) from error
    assert files_left(lunr.root) == []
