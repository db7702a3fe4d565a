"""A second storage node beside `lunr up`: clones reach it through the store."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest

from lunr.client import Client
from lunr.common import files, units
from tests.support.services import CHECKOUT, Tgtd
from tests.support.waiting import PATIENCE, wait_until
from tests.system.up.volumes import backup, clear, export, holds
from tools.demos.stage import Disk, Lunr, run

SECOND = "node2"


@pytest.fixture
def second(
    lunr: Lunr, client: Client, tgtd: Tgtd, xfs_mount: Path, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of a second node, with a pool and a target of its own and the same store."""
    made = client.admin.nodes.create(SECOND)
    files.write(tmp_path / "node2.token", f"{made.token}\n")
    conf = RawConfigParser()
    conf.read(lunr.root / "lunr.conf")
    node = {"id": SECOND, "token_file": tmp_path / "node2.token", "overcommit": 10}
    for section, values in (
        ("node", {**node, "pool": "files", "target": "tgt"}),
        ("files", {"path": xfs_mount}),
        ("tgt", {"socket": tgtd.socket, "portal": tgtd.portal}),
    ):
        for name, value in values.items():
            conf.set(section, name, str(value))
    with (tmp_path / "node2.conf").open("w") as file:
        conf.write(file)
    with (tmp_path / "node2.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "lunr.storage.main", "--config-file", tmp_path / "node2.conf"],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: client.admin.nodes.get(SECOND).status == "ACTIVE")
        yield agent
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(PATIENCE)


def test_clones_reach_another_node_whole(
    second: subprocess.Popen[bytes], client: Client, image: Path, tmp_path: Path
) -> None:
    made = client.volumes.create(size=1, force_node="node1")
    source = client.volumes.wait(made.id, timeout=PATIENCE).id
    disk = Disk(export(client, source), tmp_path)
    disk.write_image(image, lambda _: None)
    backup(client, source)
    snapshot = client.snapshots.wait(client.snapshots.create(source).id, timeout=PATIENCE).id
    changed = tmp_path / "changed"
    run(["cp", "--sparse=always", image, changed])
    with changed.open("r+b") as file:
        file.seek(500 * units.MIB)
        file.write(b"changed" * 10_000)
    disk.write_image(changed, lambda _: None)

    away = f"different_node:{source}"
    copy = client.volumes.create(source_volume=source, affinity=away)
    assert (copy.node_id, copy.status) == (SECOND, "NEW")
    client.admin.nodes.update("node1", status="MAINTENANCE")
    of_snapshot = client.volumes.create(snapshot=snapshot)
    assert of_snapshot.node_id == SECOND
    for clone, content in ((copy, changed), (of_snapshot, image)):
        assert client.volumes.wait(clone.id, timeout=PATIENCE).node_id == SECOND
        assert holds(client, clone.id, content, tmp_path)
    saves = client.jobs.list(kind="backup.save", volume_id=source)
    stored = [job.result["bytes_stored"] for job in saves if job.result]
    assert len(stored) == 3
    # Against the backup that was there, only what had changed since went to the store.
    assert max(stored[:2]) < 2 * units.MIB < stored[2]
    wait_until(lambda: not [b for b in client.admin.backups(volume_id=source) if b.internal])

    clear(client)
