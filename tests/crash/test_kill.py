"""Kill -9 of any part in the middle of any kind of job: everything ends by itself, nothing is left.

Each round starts one job, kills one part after a random while, and waits until
the job is over. There is a round for each kind of job, and each part is killed; `LUNR_CRASH_ROUNDS`
makes more of them, with parts drawn by chance. The seed is printed, and `LUNR_CRASH_SEED` repeats
a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lunr.backup import stores
from lunr.client import Client
from lunr.client.errors import ApiError, Unreachable
from lunr.common import units
from tests.support.thorough import examples
from tests.support.waiting import PATIENCE, wait_until
from tools.demos.stage import Lunr

ROUNDS = int(os.environ.get("LUNR_CRASH_ROUNDS") or examples(0, 48))
#: How often the power is cut.
CUTS = examples(1, 5)
#: Who works on jobs with data, and who there is besides.
AT_WORK = ("worker", "storage", "api")
VICTIMS = (*AT_WORK, "tgtd", "orbit")
Begin = Callable[[], None]
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
        return self.client.volumes.wait(self.client.volumes.create(size=1).id, timeout=PATIENCE).id

    def backup_of_data(self) -> str:
        """An AVAILABLE backup."""
        found = next(iter(self.client.backups.list(status="AVAILABLE")), None)
        if found is None:
            found = self.client.backups.create(self.client_data_volume())
            found = self.client.backups.wait(found.id, timeout=2 * PATIENCE)
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
        self.client.exports.wait(id, timeout=PATIENCE)
        self.client.exports.delete(id)

    def backup(self) -> None:
        self.client.backups.create(self.client_data_volume(), full=self.rng.random() < 0.5)

    def restore(self) -> None:
        self.client.volumes.create(backup=self.backup_of_data())

    def verify(self) -> None:
        self.client.backups.verify(self.backup_of_data())

    def delete_backup(self) -> None:
        id = self.client.backups.create(self.client_data_volume()).id
        self.client.backups.wait(id, timeout=2 * PATIENCE)
        self.client.backups.delete(id)

    def delete(self) -> None:
        self.client.volumes.delete(self.volume())

    def collect(self) -> None:
        self.client.admin.collect(self.client.account)


def unfinished(client: Client) -> list[str]:
    """The jobs that are queued or running, or that the API is away."""
    try:
        jobs = [job for job in client.jobs.list() if job.status not in OVER]
    except Unreachable as error:
        return [str(error)]
    return [f"{job.kind} {job.id} is {job.status}, attempt {job.attempt}" for job in jobs]


def is_idle(client: Client) -> bool:
    """Whether no job is queued or running; not as long as the API is away."""
    return not unfinished(client)


def settle(client: Client) -> None:
    """Wait until no job is queued or running."""
    try:
        wait_until(lambda: is_idle(client), what="no job is left", interval=0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}: {unfinished(client)}") from error


def draw_rounds(
    kinds: list[Begin], with_data: list[Begin], rng: random.Random
) -> Iterator[tuple[Begin, str]]:
    """What begins in each round, and which part is killed then."""
    # A restore needs no engine's worker: the volume is usable at once, and filled behind.
    by_worker = rng.choice([kind for kind in with_data if kind.__name__ != "restore"])
    at_work = [part for part in AT_WORK if part != "worker"]
    others = [*("api", "storage", "tgtd", "orbit") * 2, rng.choice(VICTIMS)]
    assert 1 + len(at_work) + len(others) == len(kinds)
    rng.shuffle(at_work)
    rng.shuffle(others)
    for kind in kinds:
        if kind == by_worker:
            yield kind, "worker"
        else:
            yield kind, (at_work if kind in with_data else others).pop()
    for number in range(ROUNDS):
        kind = kinds[number % len(kinds)]
        yield kind, rng.choice(AT_WORK if kind in with_data else VICTIMS)


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
    data = client.volumes.wait(client.volumes.create(size=1, name="data").id, timeout=PATIENCE)
    image = next((lunr.root / "pool").rglob(f"*{data.id}*"))
    with image.open("r+b") as file:
        file.write(rng.randbytes(64 * units.MIB))
    round = Round(client, rng)
    kinds: list[Begin] = [
        *(round.create, round.extend, round.snapshot, round.clone, round.export, round.detach),
        *(round.backup, round.restore, round.verify, round.delete_backup, round.delete),
        round.collect,
    ]
    log = []
    for kind, victim in draw_rounds(kinds, [round.backup, round.restore, round.verify], rng):
        kind()
        if victim == "worker":  # it may have to be started, and ends with its job: at once
            pid = wait_until(
                lambda: lunr.parts().get("worker") or (is_idle(client) and -1), what="a worker"
            )
        else:
            time.sleep(rng.uniform(0, 0.3))
            pid = lunr.parts().get(victim, -1)
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
        log.append(f"{kind.__name__}: {victim} {'killed' if pid > 0 else 'was not there'}")
        settle(client)
        for volume in client.volumes.list():
            assert volume.status == "ACTIVE", (log, volume)
        for backup in client.backups.list():
            assert backup.status == "AVAILABLE", (log, backup)
        for snapshot in client.snapshots.list():
            assert snapshot.status == "AVAILABLE", (log, snapshot)
    print("\n".join(log))
    assert {line.split()[1] for line in log if line.endswith("killed")} == set(VICTIMS)
    for backup in client.backups.list():
        client.jobs.wait(client.backups.verify(backup.id).id, timeout=2 * PATIENCE)
    delete_all(client)
    client.admin.collect(client.account, wait=True, timeout=PATIENCE)
    settle(client)
    assert files_left(lunr.root) == []
    store = stores.open_store(f"files:{lunr.root}/store", client.account)
    assert [name for name, _ in store.list("")] == []
    wait_until(lambda: "worker" not in lunr.parts(), what="no engine worker is left")


def test_power_cut_in_the_middle_of_everything(lunr: Lunr, client: Client) -> None:
    data = client.volumes.wait(client.volumes.create(size=1, name="data").id, timeout=PATIENCE)
    image = next((lunr.root / "pool").rglob(f"*{data.id}*"))
    with image.open("r+b") as file:
        file.write(os.urandom(64 * units.MIB))
    round = Round(client, random.Random(0))
    first = round.backup_of_data()
    for _ in range(CUTS):
        for begin in (round.create, round.clone, round.backup, round.restore, round.snapshot):
            begin()
        time.sleep(random.uniform(0, 0.5))
        lunr.kill()
        lunr.start()
        lunr.wait_until_up()
        settle(client)
        assert {v.status for v in client.volumes.list()} == {"ACTIVE"}
        assert {b.status for b in client.backups.list()} == {"AVAILABLE"}
    client.jobs.wait(client.backups.verify(first).id, timeout=2 * PATIENCE)
    try:
        delete_all(client)
    except ApiError as error:
        raise AssertionError(error.reason) from error
    assert files_left(lunr.root) == []
