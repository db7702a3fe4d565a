"""Exports are there as they ought to be, whatever was missing, killed or full, over real tgtd."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores import open_store
from lunr.client.records import Export as Record
from lunr.storage.exports import Exports, _Mover
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import RestoreSettings
from lunr.storage.targets.base import Session as Who
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd, need_fuse
from tests.support.waiting import PATIENCE, wait_until
from tests.system.backup.lazy_image.mounted import KEY, MIB
from tests.system.storage import iscsi
from tests.system.storage.nodes import Place, end_restores, make_restores, own_folder
from tests.system.storage.test_agent import export_payload
from tools.demos.stage import Disk, Session

SIZE = 16 * MIB
TASK = RestoreSpec("b1", "account", SIZE)

#: An agent that has the process of `v1` die, and dies when there is another, before it goes on.
DOOMED = """
import json, os, signal, sys, threading
from pathlib import Path
from lunr.storage.restore.process import attach
from tests.system.storage import test_exports as test
from tests.system.storage.nodes import Place

node = test.Node(Place(**{k: Path(v) if k != "portal" else v for k, v in json.loads(sys.argv[1]).items()}))
node.restores.on_replaced = lambda _id: os.kill(os.getpid(), signal.SIGKILL)
node.start()
attach(node.run / "v1").kill()
threading.Event().wait()
"""  # noqa: E501


class Node:
    """What of a node has to do with exports."""

    def __init__(self, place: Place) -> None:
        self.pool: FilesPool
        self.target: TgtTarget
        self.pool, self.target, engine = place.parts()
        self.pool.check()
        self.restores = make_restores(self.pool, engine)
        self.run = RestoreRegistry.folder_in(own_folder(engine) / "run")
        self.exports = Exports(self.restores, self.target)
        self.restores.on_replaced = self.exports.reopen

    def end(self) -> None:
        self.exports.detach_all()
        self.restores.close()
        self.pool.close()

    def start(self) -> None:
        """As an agent does, with the API's answer that `v1` ought to be exported."""
        self.restores.load(self.pool.volumes(), self.restores.known(), [])
        self.exports.restore(lambda: [wanted("v1")])

    def watch_until(self, condition: Any, what: str) -> None:
        def look() -> Any:
            self.exports.watch()
            return condition()

        wait_until(look, what=what)


def wanted(volume_id: str) -> dict[str, Any]:
    return {"volume_id": volume_id, **export_payload(volume_id)}


def shown(volume_id: str) -> iscsi.Export:
    return iscsi.Export(volume_id=volume_id, path=Path("/"), **export_payload(volume_id))


@pytest.fixture
def place(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Iterator[Place]:
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    place = Place(xfs_mount, store, tgtd.socket, tgtd.portal)
    yield place
    tgtd.kill()  # it has the files open
    end_restores(own_folder(place.engine()) / "run")


@pytest.fixture
def content(place: Place, tmp_path: Path) -> bytes:
    """What the backup `b1` has."""
    need_fuse()
    data = random.Random(1).randbytes(SIZE)
    source = tmp_path / "source"
    source.write_bytes(data)
    store = open_store(f"files:{place.store}", "account")
    with FileSource(source) as opened:
        repository = Repository(store, derive.derive(bytes.fromhex(KEY), "account"))
        save(repository, opened, Backup("b1", "v1", "2026-11-23T00:00:00Z"))
    return data


@pytest.fixture
def node(place: Place) -> Iterator[Node]:
    node = Node(place)
    yield node
    node.end()


@pytest.fixture
def filling(node: Node, content: bytes) -> Node:
    """With `v1`, which nobody fills, exported."""
    assert content
    node.pool.create("v1", SIZE)
    node.restores.begin("v1", TASK, lambda: None)
    node.exports.attach("v1", wanted("v1"))
    return node


def disk(place: Place, folder: Path) -> Disk:
    payload = export_payload("v1")
    record = Record(
        id="v1",
        status="ATTACHED",
        volume_id="v1",
        target_portal=place.portal,
        target_iqn=payload["iqn"],
        target_lun=payload["lun"],
        auth_username=payload["username"],
        auth_password=payload["password"],
        initiator=payload["initiator"],
    )
    return Disk(record, folder)


def test_what_can_not_be_put_back_at_the_start_is_later(node: Node, place: Place) -> None:
    node.exports.restore(lambda: [wanted("v1"), wanted("v2")])  # neither is there
    node.exports.watch()
    assert node.exports.present() == {}
    node.pool.create("v1", SIZE)
    node.watch_until(lambda: "v1" in node.exports.present(), "it is exported")
    assert iscsi.admits(place.portal, shown("v1"))
    node.exports.detach("v2")
    node.pool.create("v2", SIZE)
    time.sleep(2.5)
    node.exports.watch()
    time.sleep(0.5)
    assert node.exports.present().keys() == {"v1"}, "what nobody wants any more stays away"


def test_half_of_an_export_is_made_whole(
    node: Node, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pool.create("v1", SIZE)
    file = node.pool.path("v1")
    hidden = file.with_name("hidden")
    real = node.restores.device
    # Its path is known, and then it can't be opened: a target without a disk is left.
    monkeypatch.setattr(node.restores, "device", lambda _id: file)
    file.rename(hidden)
    node.exports.restore(lambda: [wanted("v1")])
    monkeypatch.setattr(node.restores, "device", real)
    hidden.rename(file)
    node.watch_until(
        lambda: "Unit Serial Number" in iscsi.inquire(place.portal, shown("v1")), "it has its disk"
    )


def test_what_is_detached_while_the_api_is_asked_stays_away(node: Node) -> None:
    node.pool.create("v1", SIZE)
    node.exports.attach("v1", wanted("v1"))

    def ask() -> list[dict[str, Any]]:
        answer = [wanted("v1")]
        node.exports.detach("v1")
        return answer

    node.exports.restore(ask)
    node.exports.watch()
    assert node.exports.present() == {}


def test_a_volume_that_hangs_keeps_no_other_from_being_exported(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for volume_id in ("v1", "v2"):
        node.pool.create(volume_id, SIZE)
    real = node.restores.device

    def path(volume_id: str) -> Path:
        if volume_id == "v1":
            time.sleep(5)  # as one does that is made plain, and hangs
        return real(volume_id)

    node.exports.attach("v1", wanted("v1"))
    monkeypatch.setattr(node.restores, "device", path)
    node.target.remove("v1")
    begun = time.monotonic()
    node.exports.watch()
    node.exports.attach("v2", wanted("v2"))
    node.exports.watch()
    assert time.monotonic() - begun < 3
    wait_until(lambda: node.exports.present().keys() == {"v1", "v2"}, what="both are there")


def test_an_agent_that_dies_before_the_target_has_opened_the_file_anew(
    filling: Node, place: Place, content: bytes, tmp_path: Path
) -> None:
    """The next one takes over a process that is not the one which the target has open."""
    where = json.dumps({name: str(value) for name, value in asdict(place).items()})
    # From now on it is as if this agent had ended.
    filling.restores.on_replaced = lambda _id: None
    one = filling.restores.get("v1")
    assert one is not None
    one._supervisor.stop()
    filling.pool.close()
    log = tmp_path / "log"
    with log.open("wb") as said:  # not a pipe: the process that it starts keeps that open
        done = subprocess.run(
            [sys.executable, "-c", DOOMED, where],
            cwd=Path(__file__).parents[3],
            stderr=said,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL, log.read_text()
    filling.pool.check()
    second = Node.__new__(Node)
    second.__dict__.update(filling.__dict__)
    second.restores = make_restores(filling.pool, place.engine())
    second.exports = Exports(second.restores, filling.target)
    second.start()
    copy = tmp_path / "copy"
    disk(place, tmp_path).read_image(copy, lambda _: None, seconds=30)
    assert copy.read_bytes() == content


def fill(node: Node) -> None:
    one = node.restores.get("v1")
    assert one is not None
    one.apply_settings(RestoreSettings("eager"))
    wait_until(lambda: one.is_filled, what="it is full")


def logged_in(node: Node) -> list[Who]:
    return node.exports.present().get("v1", [])


def exported(node: Node) -> str:
    (target,) = node.target._targets()
    return str(target.luns[1].path)


def test_who_stays_logged_in_gets_the_pool_s_file_at_the_first_quiet_moment(
    filling: Node, place: Place, content: bytes, tmp_path: Path
) -> None:
    node, model = filling, bytearray(content)
    session = Session(disk(place, tmp_path), tmp_path)
    piece = tmp_path / "piece"
    try:

        def write(offset: int) -> None:
            piece.write_bytes(data := os.urandom(8192))
            session.write(piece, offset, 8192)
            model[offset : offset + 8192] = data

        write(5 * MIB)
        fill(node)
        until = time.monotonic() + 5
        while time.monotonic() < until:  # who is at work is left alone
            write(7 * MIB)
            node.exports.watch()
            time.sleep(0.2)
        assert exported(node) == str(node.run / "v1" / "mnt" / "volume")
        is_plain = lambda: node.restores.get("v1").is_plain  # type: ignore[union-attr]  # noqa: E731
        node.watch_until(is_plain, "it is an ordinary volume")
        assert exported(node) == str(node.pool.path("v1"))
        # Cleared just after that is noted.
        node.watch_until(lambda: not (node.run / "v1").exists(), "its process has left nothing")
        write(9 * MIB)
        session.read_into_nothing(0, MIB)
        session.flush()
        assert len(logged_in(node)) == 1
    finally:
        session.close()
    copy = tmp_path / "copy"
    disk(place, tmp_path).read_image(copy, lambda _: None)
    assert copy.read_bytes() == model == node.pool.path("v1").read_bytes()


def test_requests_that_come_as_the_export_is_moved_are_done(
    filling: Node, place: Place, content: bytes, tmp_path: Path
) -> None:
    """Moved again and again under an initiator that is at work, whatever `idle_seconds` says."""
    node, model = filling, bytearray(content)
    session = Session(disk(place, tmp_path), tmp_path)
    piece = tmp_path / "piece"
    one = node.restores.get("v1")
    assert one is not None
    fill(node)
    one.idle_seconds = lambda: 60.0  # type: ignore[method-assign]

    def move_again(volume_id: str) -> None:
        _Mover(node.exports, volume_id).open_device()

    try:
        for number in range(60):
            if number % 20 == 10:
                move = node.exports._hand_over if number == 10 else move_again
                node.exports._beside("v1", move)
            piece.write_bytes(data := os.urandom(4096))
            at = number * 65536
            session.write(piece, at, 4096)
            model[at : at + 4096] = data
        session.flush()
    finally:
        session.close()
    node.watch_until(lambda: one.is_plain, "it is an ordinary volume")
    assert node.pool.path("v1").read_bytes() == model
