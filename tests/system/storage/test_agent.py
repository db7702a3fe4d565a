"""The agent, in this process, on a real pool, target and engine."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common import errors
from lunr.storage import engine as engine_module
from lunr.storage.agent import agent as agent_module
from lunr.storage.agent.agent import Agent
from lunr.storage.pools.base import Purpose, Snapshot
from tests.support.services import Tgtd
from tests.support.waiting import PATIENCE, wait_until
from tests.system.storage import iscsi
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import ODD_WORKER, Place

MIB = 1 << 20
SIZE = 16 * MIB
REPOSITORY = "account1"


@pytest.fixture
def api() -> Iterator[ContractApi]:
    api = ContractApi()
    yield api
    api.stop()


@pytest.fixture
def place(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Place:
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    return Place(xfs_mount, store, tgtd.socket, tgtd.portal)


@pytest.fixture
def start(place: Place, api: ContractApi) -> Iterator[Callable[..., Agent]]:
    """Start an agent; all are stopped in the end."""
    agents: list[Agent] = []

    def start(**options: Any) -> Agent:
        agent = place.agent(api.url, **options)
        agents.append(agent)
        agent.start()
        return agent

    yield start
    for agent in agents:
        agent.stop()
        agent.node.restores.close()


def export_payload(volume_id: str, **others: Any) -> dict[str, Any]:
    return {
        "iqn": f"iqn.2026-11.io.lunr:{volume_id}",
        "lun": 1,
        "username": f"user-{volume_id}",
        "password": "secret-of-12",
        "initiator": iscsi.INITIATOR,
        "ip": "127.0.0.1",
        "serial": volume_id,
        **others,
    }


def backup(api: ContractApi, volume_id: str, backup_id: str, parent: str | None = None) -> Any:
    return api.do(
        "backup.save",
        volume_id,
        backup_id,
        backup_id=backup_id,
        repository=REPOSITORY,
        parent_id=parent,
        condemned=[],
        created_at="2026-11-23T12:00:00Z",
    )


def test_a_volume_from_its_making_to_its_end(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    agent = start()
    pool = agent.node.pool
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = random.Random(7).randbytes(3 * MIB)
    with pool.path("v1").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(data)
    api.do("snapshot.create", "v1", "s1", snapshot_id="s1")
    source = {"kind": "snapshot", "id": "s1", "volume_id": "v1"}
    api.do("volume.clone", "v2", "v2", size_bytes=SIZE, source=source)
    source = {"kind": "volume", "id": "v1", "volume_id": "v1"}
    api.do("volume.clone", "v3", "v3", size_bytes=2 * SIZE, source=source)
    api.do("volume.extend", "v2", "v2", size_bytes=2 * SIZE)
    assert pool.path("v2").read_bytes() == pool.path("v3").read_bytes()

    result = backup(api, "v1", "b1")
    assert result["bytes_stored"] > 0
    with pool.path("v1").open("r+b") as file:
        file.write(b"changed")
    result = backup(api, "v1", "b2", parent="b1")
    assert result["parent_id"] == "b1"
    api.do("backup.verify", "v1", "b1", backup_id="b1", repository=REPOSITORY)
    # Of the backups' there is only the last one's, for the next.
    baseline = Snapshot("v1", "b2", Purpose.BASELINE)
    assert pool.snapshots() == {Snapshot("v1", "s1"), baseline}

    stored = {"repository": REPOSITORY, "backup_id": "b1"}
    api.restore("v4", size_bytes=2 * SIZE, **stored)
    assert pool.path("v4").read_bytes() == pool.path("v3").read_bytes()
    api.do("backup.delete", "v1", "b1", **stored)
    kept = {"repository": REPOSITORY, "keep": [], "required": ["b2"]}
    collected = api.do("repository.collect", None, "c", **kept)
    if collected["collection"]:
        api.do("repository.sweep", None, "c", collection=collected["collection"], **kept)

    payload = export_payload("v2")
    api.do("export.create", "v2", "v2", **payload)
    shown = iscsi.Export(
        volume_id="v2",
        path=pool.path("v2"),
        **payload,
    )
    assert iscsi.admits(place.portal, shown)
    with iscsi.session(place.portal, shown):
        # Told early: long before the next heartbeat would be due.
        wait_until(
            lambda: (
                api.heartbeats[-1]["sessions"]
                == {"v2": [{"initiator": iscsi.INITIATOR, "ip": "127.0.0.1"}]}
            ),
            what="the heartbeat tells of the session",
        )
        refused = api.wait(api.add("export.delete", "v2", "v2", iqn=payload["iqn"], force=False))
        assert refused["error"]["code"] == "in_use"
        assert iscsi.INITIATOR in refused["error"]["reason"]
        refused = api.wait(api.add("volume.delete", "v2", "v2"))
        assert refused["error"]["code"] == "in_use"
        assert "v2" in pool.volumes()
        api.do("export.delete", "v2", "v2", iqn=payload["iqn"], force=True)
    for volume_id in ("v1", "v2", "v3", "v4"):
        api.do("volume.delete", volume_id, volume_id)
    api.do("snapshot.delete", "v1", "s1", snapshot_id="s1")
    assert not pool.volumes()
    assert not pool.snapshots()
    assert not agent.node.exports.present()


def test_tgtd_restarted_has_its_exports_back(
    start: Callable[..., Agent], api: ContractApi, place: Place, tgtd: Tgtd
) -> None:
    agent = start()
    for volume_id in ("v1", "v2"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
        api.do("export.create", volume_id, volume_id, **export_payload(volume_id))
    tgtd.kill()
    wait_until(lambda: agent._target_restarted, what="the agent sees it gone")
    tgtd.start()
    wait_until(lambda: agent.node.exports.present().keys() == {"v1", "v2"}, what="exports are back")
    for volume_id in ("v1", "v2"):
        export = iscsi.Export(
            volume_id=volume_id, path=agent.node.pool.path(volume_id), **export_payload(volume_id)
        )
        assert iscsi.admits(place.portal, export)


def test_tgtd_restarted_has_back_what_only_the_records_know(
    start: Callable[..., Agent], api: ContractApi, tgtd: Tgtd
) -> None:
    """An export whose detach was refused after the agent's start: it is not among the wanted."""
    agent = start()
    for volume_id in ("v1", "v2"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
    api.exports = [{"volume_id": "v2", **export_payload("v2")}]
    tgtd.kill()
    wait_until(lambda: agent._target_restarted, what="the agent sees it gone")
    tgtd.start()
    wait_until(lambda: agent.node.exports.present().keys() == {"v2"}, what="the export is back")


def test_a_start_makes_the_node_what_the_records_say(
    start: Callable[..., Agent], api: ContractApi, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    for volume_id in ("kept", "gone", "stray", "unknown"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
    api.do("snapshot.create", "kept", "s1", snapshot_id="s1")
    api.do("snapshot.create", "kept", "s2", snapshot_id="s2")
    for volume_id in ("gone", "stray"):
        api.do("export.create", volume_id, volume_id, **export_payload(volume_id))
    pool = first.node.pool
    for backup_id in ("b-over", "slow"):
        pool.snapshot(Snapshot("kept", backup_id, Purpose.BACKUP))
    (pool.path("kept").parent / "half.0123456789abcdef.tmp").write_bytes(b"half")
    first.stop()

    api.volumes = [{"id": id, "size_bytes": SIZE} for id in ("kept", "stray", "lost")]
    api.delete = {"volumes": ["gone"], "snapshots": ["s2"]}
    api.exports = [{"volume_id": "kept", **export_payload("kept")}]
    api.add(
        "backup.save",
        "kept",
        "slow",
        backup_id="slow",
        repository=REPOSITORY,
        parent_id=None,
        condemned=[],
        created_at="",
    )
    second = start(worker=ODD_WORKER)
    found = api.reconciled[-1]
    assert found["volumes"] == ["gone", "kept", "stray", "unknown"]
    assert found["snapshots"] == ["s1", "s2"]
    assert found["exports"] == ["gone", "stray"]
    wait_until(lambda: not second.pending_deletes.progress(), what="what was deleted is removed")
    assert second.node.pool.volumes() == {"kept", "stray", "unknown"}
    assert second.node.pool.snapshots() == {
        Snapshot("kept", "s1"),
        Snapshot("kept", "slow", Purpose.BACKUP),
    }
    assert second.node.exports.present() == {"kept": []}
    assert not list(pool.folder.glob("**/*.tmp"))
    assert "unknown" in caplog.text
    assert "lost ought to be here" in caplog.text


def test_an_export_that_nobody_asked_for_goes_when_its_user_does(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    first = start()
    shown = {}
    for volume_id in ("v1", "v2"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
        payload = export_payload(volume_id)
        api.do("export.create", volume_id, volume_id, **payload)
        path = first.node.pool.path(volume_id)
        shown[volume_id] = iscsi.Export(volume_id=volume_id, path=path, **payload)
    first.stop()
    api.volumes = [{"id": id, "size_bytes": SIZE} for id in ("v1", "v2")]
    api.exports = []
    with iscsi.session(place.portal, shown["v1"]), iscsi.session(place.portal, shown["v2"]):
        second = start()
        time.sleep(5 * agent_module.WATCH_INTERVAL)  # it looks
        assert second.node.exports.present().keys() == {"v1", "v2"}
        api.do("export.create", "v2", "v2", **export_payload("v2"))
    wait_until(lambda: second.node.exports.present().keys() == {"v2"}, what="the stray is gone")
    time.sleep(5 * agent_module.WATCH_INTERVAL)
    assert second.node.exports.present().keys() == {"v2"}  # it was asked for meanwhile


def test_a_target_is_told_that_nobody_looks_at_it_any_more(
    start: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, closed = start(), threading.Event()
    monkeypatch.setattr(agent._target, "close", closed.set)
    agent.stop()
    assert closed.is_set()


def test_a_defect_ends_no_thread(
    start: Callable[..., Agent],
    api: ContractApi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = start()
    worked: set[str] = set()

    def once_broken(thing: Any, name: str) -> None:
        real, broken = getattr(thing, name), [True]
        full_name = f"{type(thing).__name__}.{name}"

        def method(*args: Any, **options: Any) -> Any:
            if broken:
                broken.clear()
                raise ValueError(f"a defect of {full_name}")
            result = real(*args, **options)
            worked.add(full_name)
            return result

        monkeypatch.setattr(thing, name, method)

    once_broken(agent.node.pool, "watch")
    once_broken(agent.node.baselines, "look")
    once_broken(agent.node.exports, "watch")
    once_broken(agent._api, "heartbeat")
    once_broken(agent.supervisor, "do")
    api.add("volume.create", "v1", "v1", size_bytes=SIZE)
    all_on = {"FilesPool.watch", "Baselines.look", "Exports.watch", "ApiClient.heartbeat"}
    wait_until(lambda: worked >= all_on, what="all go on")
    for name in (*all_on, "JobRunner.do"):
        assert f"ValueError: a defect of {name}" in caplog.text
    for volume_id in ("v2", "v3", "v4"):  # more than there are workers
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)


def test_a_defect_loses_no_lease(
    start: Callable[..., Agent], api: ContractApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = start(worker=ODD_WORKER)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    update, failed = agent._api.update, threading.Event()

    def once_broken(*args: Any, **fields: Any) -> dict[str, Any]:
        if not failed.is_set():
            failed.set()
            raise ValueError("a defect")
        return update(*args, **fields)

    monkeypatch.setattr(agent._api, "update", once_broken)
    job_id = api.add("backup.save", "v1", "slow", backup_id="slow", repository=REPOSITORY)
    assert failed.wait(PATIENCE)
    wait_until(lambda: api.jobs[job_id]["updates"], what="the lease is renewed all the same")


@pytest.mark.parametrize(
    ("how", "code"),
    [("die", "engine_died"), ("babble", "engine_died"), ("full", "store_full")],
)
def test_a_worker_that_fails_leaves_nothing(
    start: Callable[..., Agent], api: ContractApi, how: str, code: str
) -> None:
    agent = start(worker=ODD_WORKER)
    pool = agent.node.pool
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    payload = {"backup_id": how, "repository": REPOSITORY}
    job = api.wait(api.add("backup.save", "v1", how, **payload))
    assert job["status"] == "FAILED"
    assert job["error"]["code"] == code
    assert job["attempt"] == (5 if code == "engine_died" else 1)
    assert pool.volumes() == {"v1"}
    assert not pool.snapshots()


@pytest.mark.parametrize("how", ["slow", "stubborn"])
def test_cancel_stops_a_worker_in_time(
    start: Callable[..., Agent],
    api: ContractApi,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "STOP_GRACE", 0.5)
    agent = start(worker=ODD_WORKER)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    payload = {"backup_id": how, "repository": REPOSITORY}
    job_id = api.add("backup.save", "v1", how, **payload)
    wait_until(lambda: api.jobs[job_id]["progress"] >= 0 and api.jobs[job_id]["updates"])
    api.cancel(job_id)
    assert api.wait(job_id)["status"] == "CANCELLED"
    assert not agent.node.pool.snapshots()


def test_a_lost_lease_ends_the_work_and_the_next_attempt_begins_after_it(
    start: Callable[..., Agent], api: ContractApi
) -> None:
    agent = start(worker=ODD_WORKER)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    payload = {"backup_id": "slow", "repository": REPOSITORY}
    job_id = api.add("backup.save", "v1", "slow", **payload)
    api.wait(job_id, "RUNNING")
    wait_until(lambda: [job.kind for job in agent.supervisor.running()] == ["backup.save"])
    [first] = agent.supervisor.running()
    api.take_away(job_id)
    wait_until(lambda: api.jobs[job_id]["attempt"] == 2, what="it is claimed again")
    wait_until(
        lambda: [job is not first for job in agent.supervisor.running()] == [True],
        what="the second attempt runs alone",
    )
    assert job_id in api.refused
    snapshot = Snapshot("v1", "slow", Purpose.BACKUP)
    assert agent.node.pool.snapshots() == {snapshot}, "it reads what the first one did"


def test_the_api_away_for_longer_than_the_lease_is_lived_through(
    start: Callable[..., Agent], api: ContractApi
) -> None:
    api.lease_seconds = 1.0
    agent = start(worker=ODD_WORKER)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    payload = {"backup_id": "slow", "repository": REPOSITORY}
    job_id = api.add("backup.save", "v1", "slow", **payload)
    api.wait(job_id, "RUNNING")
    wait_until(agent.supervisor.running)
    api.stop()
    wait_until(lambda: not agent.supervisor.running(), what="the work was dropped")
    api.start()
    api.take_away(job_id)
    wait_until(lambda: api.jobs[job_id]["attempt"] == 2, what="it is claimed again")
    api.do("volume.create", "v2", "v2", size_bytes=SIZE)


def test_bad_payloads_fail_their_job_and_nothing_else(
    start: Callable[..., Agent], api: ContractApi
) -> None:
    agent = start()
    for kind, volume_id, payload in (
        ("volume.create", "../v1", {"size_bytes": SIZE}),
        ("volume.create", "v1", {"size_bytes": -1}),
        ("volume.create", "v1", {"size_bytes": "big"}),
        ("volume.create", "v1", {}),
        ("volume.clone", "v1", {"size_bytes": SIZE, "source": {"kind": "file", "id": "x"}}),
        ("volume.clone", "v1", {"size_bytes": SIZE, "source": {"kind": "volume", "id": "nope"}}),
        ("snapshot.create", "v1", {"snapshot_id": "a/b"}),
        ("export.create", "nope", export_payload("nope")),
        ("volume.restore", "v1", {"size_bytes": SIZE, "backup_id": "b", "repository": ".."}),
    ):
        job = api.wait(api.add(kind, volume_id, "x", **payload))
        assert job["status"] == "FAILED", kind
        assert job["error"]["code"] in ("invalid_field", "not_found"), job["error"]
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    for wrong in (
        {"initiator": "iqn.x:a initiator-address=ALL"},
        {"initiator": "ALL"},
        {"initiator": None, "ip": "ALL"},
        {"initiator": None, "ip": "0.0.0.0/0"},
        {"initiator": None, "ip": None},
        {"iqn": "iqn.2026-11.io.lunr:other"},
        {"password": "with,comma"},
    ):
        job = api.wait(api.add("export.create", "v1", "v1", **export_payload("v1", **wrong)))
        assert job["error"]["code"] == "invalid_field", wrong
    assert not agent.node.exports.present()


def test_a_wrong_token_is_said_at_the_start(place: Place, api: ContractApi) -> None:
    agent = place.agent(api.url, token="wrong")
    with pytest.raises(errors.RemoteError, match="no"):
        agent.start()
    agent.stop()


def test_capacity_is_told(start: Callable[..., Agent], api: ContractApi, place: Place) -> None:
    start()
    report = api.heartbeats[-1]
    assert report["pool"] == "files"
    assert report["target"] == "tgt"
    assert report["portal"] == place.portal
    assert 0 < report["free_bytes"] <= report["capacity_bytes"] <= 2 << 30
