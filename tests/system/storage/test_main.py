"""``lunr-storage`` as a process of its own, with eventlet, as it is run by systemd."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.services import CHECKOUT, Tgtd, need_fuse
from tests.support.waiting import PATIENCE, free_port, wait_until
from tests.system.storage import iscsi
from tests.system.storage.contract_api import NODE, TOKEN, ContractApi
from tests.system.storage.nodes import KEY, end_restores
from tests.system.storage.test_agent import backup, export_payload

MIB = 1 << 20
SIZE = 64 * MIB


class Storage:
    """The process, and its configuration."""

    def __init__(self, folder: Path, pool: Path, tgtd: Tgtd, api: ContractApi) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"
        for name, secret in (("token", TOKEN), ("key", KEY)):
            (folder / name).write_text(secret + "\n")
            (folder / name).chmod(0o600)
        (folder / "lunr.conf").write_text(
            f"""
[node]
id = {NODE}
api_url = {api.url}
token_file = {folder}/token
bind_port = {self.port}
heartbeat = 1
state_dir = {folder}/state
run_dir = {folder}/run
[files]
path = {pool}
image_gib = 1
[tgt]
socket = {tgtd.socket}
portal = {tgtd.portal}
[store]
url = files:{folder}/store
key = file:{folder}/key
compression = none
"""
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lunr.storage.main", "--config-file",
                 self.folder / "lunr.conf"],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def end(self, sig: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(PATIENCE)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE)

    def workers(self) -> list[int]:
        """Engine workers of this node, known by their place in the store's folder's session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if b"lunr.backup.worker" in command and os.fsencode(self.folder) in environment:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def api() -> Iterator[ContractApi]:
    api = ContractApi(lease_seconds=10)
    yield api
    api.stop()


@pytest.fixture
def storage(
    xfs_mount: Path,
    tgtd: Tgtd,
    api: ContractApi,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Storage]:
    need_fuse()
    folder = Path(tempfile.mkdtemp(prefix="storage-", dir=run_folder))
    monkeypatch.setenv("LUNR_TEST_MARK", str(folder))
    storage = Storage(folder, xfs_mount, tgtd, api)
    yield storage
    if storage.process is not None and storage.process.poll() is None:
        storage.process.kill()
        storage.process.wait()
    wait_until(lambda: not storage.workers(), what="no worker is left")
    end_restores(folder / "run")


def fill(pool: Path, volume_id: str) -> bytes:
    data = random.Random(volume_id).randbytes(SIZE)
    (pool / "volumes" / volume_id).write_bytes(data)
    return data


def test_a_whole_life(storage: Storage, api: ContractApi, xfs_mount: Path, tgtd: Tgtd) -> None:
    storage.start()
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = fill(xfs_mount, "v1")
    backup(api, "v1", "b1")
    stored = {"repository": "account1", "backup_id": "b1"}
    api.restore("v2", size_bytes=SIZE, **stored)
    assert (xfs_mount / "volumes/v2").read_bytes() == data
    payload = export_payload("v1")
    api.do("export.create", "v1", "v1", **payload)
    export = iscsi.Export(volume_id="v1", path=xfs_mount / "volumes/v1", **payload)

    status = storage.get("/status").json()
    assert status["id"] == NODE
    assert status["volumes"] == 2
    assert storage.get("/volumes").json() == {"volumes": ["v1", "v2"]}
    shown = storage.get("/volumes/v1").json()
    assert shown["size_bytes"] == SIZE
    assert storage.get("/volumes/v9").status_code == 404
    assert storage.get("/volumes/..%2F..").status_code in (400, 404)
    assert storage.get("/nothing").json()["code"] == "no_such_route"
    metrics = storage.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain")
    for line in (
        'lunr_node_jobs_total{kind="backup.save",outcome="done"} 1.0',
        f"lunr_node_worker_bytes_total {SIZE / 1e7}e+07",
        "lunr_node_sessions 0.0",
    ):
        assert line in metrics.text
    refused = requests.post(f"http://127.0.0.1:{storage.port}/status", timeout=PATIENCE)
    assert refused.status_code == 405

    with iscsi.session(tgtd.portal, export) as qemu:
        assert storage.end(signal.SIGTERM) == 0
        assert qemu.poll() is None  # attached initiators go on
        assert iscsi.admits(tgtd.portal, export)
    said = storage.log.read_text()
    assert "Traceback" not in said, said
    for secret in (TOKEN, KEY, payload["password"]):
        assert secret not in said


def test_a_stop_leaves_exports_unless_told_to_take_them_down(
    storage: Storage, api: ContractApi, xfs_mount: Path, tgtd: Tgtd
) -> None:
    storage.start()
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    payload = export_payload("v1")
    api.do("export.create", "v1", "v1", **payload)
    export = iscsi.Export(volume_id="v1", path=xfs_mount / "volumes/v1", **payload)
    assert storage.end(signal.SIGTERM) == 0
    assert iscsi.admits(tgtd.portal, export)
    with (storage.folder / "lunr.conf").open("a") as conf:
        conf.write("[node]\ndetach_at_stop = true\n")
    storage.start()
    wait_until(lambda: storage.log.read_text().count("the node is ready") == 2, what="the node")
    assert storage.end(signal.SIGTERM) == 0
    assert not iscsi.admits(tgtd.portal, export)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_the_middle_of_moving_data(
    storage: Storage, api: ContractApi, xfs_mount: Path, sig: signal.Signals
) -> None:
    storage.start()
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = fill(xfs_mount, "v1")
    case: dict[str, Any] = {"repository": "account1", "backup_id": "b1"}
    saved = {"parent_id": None, "condemned": [], "created_at": "2026-11-23T12:00:00Z"}
    job_id = api.add("backup.save", "v1", "b1", **case, **saved)
    wait_until(storage.workers, what="a worker runs", interval=0.001)
    code = storage.end(sig)
    assert code == (0 if sig is signal.SIGTERM else -sig)
    wait_until(lambda: not storage.workers(), what="the worker went with the agent")
    storage.start()
    assert api.wait(job_id)["status"] == "DONE"
    wait_until(lambda: not any((xfs_mount / "backups").iterdir()))
    api.restore("v3", size_bytes=SIZE, **case)
    assert (xfs_mount / "volumes/v3").read_bytes() == data


def test_it_waits_for_api_and_tgtd(
    storage: Storage, api: ContractApi, tgtd: Tgtd, xfs_mount: Path
) -> None:
    tgtd.kill()
    api.stop()
    storage.start()
    wait_until(lambda: "The iSCSI target" in storage.log.read_text(), what="it says what it misses")
    tgtd.start()
    wait_until(lambda: "The API" in storage.log.read_text() or "the API" in storage.log.read_text())
    api.start()
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    assert storage.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("chmod 0644 token", "chmod 0600"),
        ("rm token", "token_file"),
        ("echo > token", "is empty"),
        ("chmod 0644 key", "chmod 600"),
        ("sed -i 's/^id = .*/id = ..\\/x/' lunr.conf", "[node] id"),
        ("sed -i 's/^heartbeat = .*/heartbeat = soon/' lunr.conf", "heartbeat"),
        ("echo wrong > token", "unauthorized|no"),
    ],
)
def test_what_is_wrong_is_said(storage: Storage, change: str, said: str) -> None:
    subprocess.run(["sh", "-c", change], cwd=storage.folder, check=True)
    storage.start()
    assert storage.process is not None
    assert storage.process.wait(PATIENCE) == 1
    log = storage.log.read_text()
    assert any(word in log for word in said.split("|")), log
    assert "Traceback" not in log, log


def test_all_that_is_missing_is_said_at_once(storage: Storage, tgtd: Tgtd) -> None:
    config = (storage.folder / "lunr.conf").read_text()
    config = config.replace("[node]", "[node]\npool = thin").replace(
        "[store]", "[store]\nurl = tape:0"
    )
    config = config.replace(f"url = files:{storage.folder}/store\n", "")
    (storage.folder / "lunr.conf").write_text(config + "[lvm]\ngroup = no-such-group\n")
    for name in ("token", "key"):
        (storage.folder / name).unlink()
    tgtd.kill()
    with socket.create_server(("127.0.0.1", storage.port)):
        storage.start()
        assert storage.process is not None
        assert storage.process.wait(PATIENCE) == 1
    log = storage.log.read_text()
    assert "The node can't start:" in log
    lines = [line for line in log.splitlines() if line.startswith("    - ")]
    for said in ("token_file", "master key", "tape:0", "no-such-group|lvm2", "The iSCSI target"):
        assert len([line for line in lines if any(word in line for word in said.split("|"))]) == 1
    assert "Traceback" not in log, log


def test_a_taken_port_is_said(storage: Storage) -> None:
    with socket.create_server(("127.0.0.1", storage.port)):
        storage.start()
        assert storage.process is not None
        assert storage.process.wait(PATIENCE) == 1
    assert f"127.0.0.1:{storage.port}" in storage.log.read_text()
