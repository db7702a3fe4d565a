"""kill -9 at steps of every kind of job: the next start ends it, nothing is left over."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lunr.storage.pools.base import Purpose, Snapshot
from tests.support.services import CHECKOUT, Tgtd
from tests.support.thorough import steps
from tests.support.waiting import PATIENCE
from tests.system.storage import iscsi
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import Place
from tests.system.storage.test_agent import export_payload

MIB = 1 << 20
SIZE = 8 * MIB
STORED = {"repository": "account1", "backup_id": "b1"}
SAVE = {**STORED, "parent_id": None, "condemned": [], "created_at": "2026-11-23T12:00:00Z"}
BASELINE = Snapshot("v1", "b1", Purpose.BASELINE)
SNAPSHOT = {"kind": "snapshot", "id": "s1", "volume_id": "v1"}
#: The job that is killed, on a node as `_Ground` makes it.
CASES: dict[str, dict[str, Any]] = {
    "volume.create": {"volume_id": "v2", "payload": {"size_bytes": SIZE}},
    "volume.clone": {"volume_id": "v2", "payload": {"size_bytes": SIZE, "source": SNAPSHOT}},
    "volume.restore": {"volume_id": "v2", "payload": {"size_bytes": SIZE, **STORED}},
    "volume.extend": {"volume_id": "v1", "payload": {"size_bytes": 2 * SIZE}},
    "volume.delete": {"volume_id": "v1", "payload": {}},
    "snapshot.create": {"volume_id": "v1", "payload": {"snapshot_id": "s2"}},
    "snapshot.delete": {"volume_id": "v1", "payload": {"snapshot_id": "s1"}},
    "export.create": {"volume_id": "v1", "payload": export_payload("v1")},
    "export.delete": {"volume_id": "v1", "payload": {"iqn": "", "force": True}},
    "backup.save": {"volume_id": "v1", "payload": {**SAVE, "parent_id": "b1"}},
}


class _Ground:
    """A node with a volume v1, its snapshot s1 and its backup b1; stopped between jobs."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.data = random.Random(3).randbytes(SIZE // 2)

    def work(self, api: ContractApi, kind: str, volume_id: str, **payload: Any) -> Any:
        subject = payload.get("backup_id", volume_id) if kind == "backup.save" else volume_id
        return api.do(kind, volume_id, subject, **payload)

    def prepare(self, kind: str) -> None:
        with running(self.place) as (api, pool):
            for volume_id in pool.volumes():
                self.work(api, "volume.delete", volume_id)
            for snapshot in pool.snapshots():
                pool.delete_snapshot(snapshot)
            self.work(api, "volume.create", "v1", size_bytes=SIZE)
            with pool.path("v1").open("r+b") as file:
                file.write(self.data)
            self.work(api, "snapshot.create", "v1", snapshot_id="s1")
            if any(self.place.store.iterdir()):
                pool.snapshot(BASELINE)
            else:
                self.work(api, "backup.save", "v1", **SAVE)
            if kind == "backup.save":
                self.write(pool, 1)
            if kind == "export.delete":
                self.work(api, "export.create", "v1", **export_payload("v1"))

    def write(self, pool: Any, seed: int) -> None:
        """Change some of v1."""
        chance = random.Random(seed)
        with pool.path("v1").open("r+b") as file:
            for _ in range(4):
                file.seek(chance.randrange(SIZE // 4096) * 4096)
                file.write(chance.randbytes(4096))


class running:
    """An agent in this process, as (its API, its pool), for as long as the ``with`` lasts."""

    def __init__(self, place: Place, queued: tuple[str, dict[str, Any]] | None = None) -> None:
        self.api = ContractApi()
        self.agent = place.agent(self.api.url)
        if queued is not None:
            kind, case = queued
            subject = case["payload"].get("backup_id", case["volume_id"])
            self.api.add(kind, case["volume_id"], subject, **case["payload"])

    def __enter__(self) -> Any:
        self.agent.start()
        return self.api, self.agent.node.pool

    def __exit__(self, *_: object) -> None:
        self.agent.stop()
        self.agent.node.restores.close()
        self.api.stop()


@pytest.fixture
def ground(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Iterator[_Ground]:
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    yield _Ground(Place(xfs_mount, store, tgtd.socket, tgtd.portal))


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.timeout(300)
def test_killed_at_any_step(ground: _Ground, kind: str) -> None:
    case = CASES[kind]
    job = {"id": "j1", "kind": kind, "lease": "l", "lease_seconds": 60, "attempt": 1, **case}
    for step in steps():
        ground.prepare(kind)
        if kind == "backup.save":  # what is in the store stays there: a new one each time
            case["payload"]["backup_id"] = f"step{step}"
        code = victim(ground.place, job, step)
        assert code in (0, -signal.SIGKILL), f"step {step}"
        ended = code == 0
        with running(ground.place, queued=(kind, case)) as (api, pool):
            done = api.wait("job1")
            assert done["status"] == "DONE", f"step {step}: {done}"
            if kind == "volume.restore":
                api.do("volume.fill", "v2", "v2", fill="eager", fill_limit_bytes=0)
            if kind == "backup.save":
                _check_backups(ground, api, pool, f"step{step}")
            _check(ground, kind, pool, f"step {step}")
        if ended:
            break
    assert step > 1


def victim(place: Place, job: dict[str, Any], step: int) -> int:
    """The exit code of a process that does the job, and is killed after some step."""
    where = {name: str(value) for name, value in vars(place).items()}
    # Not a pipe: it has no end as long as what the victim left behind lives.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [sys.executable, "-m", "tests.system.storage.victim", json.dumps(where),
             json.dumps(job), str(step)],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        said.seek(0)
        assert done.returncode <= 0, said.read()
    return done.returncode


def _check_backups(ground: _Ground, api: ContractApi, pool: Any, backup_id: str) -> None:
    """The next backup is as the volume is, whatever was kept for it.

    So is the one that was killed, of which the next has all that did not change.
    """
    assert len([one for one in pool.snapshots() if one.purpose is not Purpose.USER]) <= 1
    following = f"{backup_id}-next"
    ground.write(pool, 2)
    ground.work(
        api, "backup.save", "v1", **{**SAVE, "backup_id": following, "parent_id": backup_id}
    )
    assert pool.snapshots() == {Snapshot("v1", "s1"), replace(BASELINE, id=following)}
    api.restore("v3", **{**STORED, "backup_id": following}, size_bytes=SIZE)
    assert pool.path("v3").read_bytes() == pool.path("v1").read_bytes(), backup_id
    api.do("volume.delete", "v3", "v3")
    pool.delete_snapshot(replace(BASELINE, id=following))


def _check(ground: _Ground, kind: str, pool: Any, where: str) -> None:
    """What is there is what `kind` makes of the ground, and nothing else."""
    volumes, snapshots, exported = {"v1"}, {Snapshot("v1", "s1"), BASELINE}, False
    match kind:
        case "volume.create" | "volume.clone" | "volume.restore":
            volumes.add("v2")
            content = bytes(SIZE) if kind == "volume.create" else ground.data + bytes(SIZE // 2)
            assert pool.path("v2").read_bytes() == content, where
        case "volume.extend":
            assert pool.path("v1").read_bytes() == ground.data + bytes(SIZE + SIZE // 2), where
        case "volume.delete":
            volumes.clear()
            snapshots.remove(BASELINE)
        case "snapshot.create":
            snapshots.add(Snapshot("v1", "s2"))
        case "snapshot.delete":
            snapshots.remove(Snapshot("v1", "s1"))
        case "export.create":
            exported = True
        case "backup.save":
            snapshots.remove(BASELINE)
    assert pool.volumes() == volumes, where
    assert pool.snapshots() == snapshots, where
    left = [str(path) for path in ground.place.pool.rglob("*.tmp")]
    assert not left, where
    payload = export_payload("v1")
    export = iscsi.Export(volume_id="v1", path=ground.place.pool / "volumes/v1", **payload)
    assert iscsi.admits(ground.place.portal, export) is exported, where
