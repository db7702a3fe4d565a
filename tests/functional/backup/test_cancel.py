"""A worker is gone within a second after it was told to cancel, whatever it is doing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.backup.swift_server import SwiftServer
from tests.functional.backup.test_worker import KEY, Worker
from tests.support.waiting import SOON, wait_until

SIZE = 40 << 20
LARGE = 800 << 20
#: A request of which the answer never comes: what is asked, of which names.
HANGS = {
    "save": [
        ("GET", "roots/"),
        ("LIST", "condemned/"),
        ("PUT", "chunks/"),
        ("PUT", "segments/"),
        ("PUT", "sessions/"),
        ("PUT", "roots/"),
    ],
    "restore": [("GET", "roots/"), ("GET", "segments/"), ("GET", "chunks/")],
}


class Place:
    def __init__(self, folder: Path, server: SwiftServer) -> None:
        self.folder = folder
        self.server = server
        self.source = folder / "source"
        self.target = folder / "target"
        self.source.write_bytes(os.urandom(SIZE))
        self.target.write_bytes(bytes(SIZE))

    def start(self, task: str, backup_id: str = "b1", **fields: Any) -> Worker:
        about: dict[str, Any] = {"target": str(self.target)}
        if task == "save":
            about = {"source": str(self.source), "volume_id": "v", "created_at": "now"}
        return Worker(
            task=task,
            store={"url": "swift:test", "options": {**self.server.options, "retries": 20}},
            key=KEY,
            repository="account",
            concurrency=2,
            backup_id=backup_id,
            **{"size_bytes": SIZE, **about, **fields},
        )

    def cancel(self, worker: Worker) -> None:
        """Cancel it: it ends soon (within a second, if the machine is idle), and says why."""
        worker.tell("cancel")
        worker.process.wait(SOON)
        code, events, log = worker.end()
        assert (code, events[-1]["code"]) == (1, "cancelled"), (events, log)

    def has_root(self) -> bool:
        return any(self.server.objects.list("roots/b1"))

    def chunks(self) -> int:
        return len(list(self.server.objects.list("chunks/")))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with SwiftServer().running() as server:
        yield Place(tmp_path, server)


@pytest.fixture
def saved(place: Place) -> Place:
    code, events, log = place.start("save", "b0").end()
    assert code == 0, (events, log)
    return place


@pytest.mark.parametrize("request_", HANGS["save"], ids=" ".join)
def test_a_save_whose_store_hangs(place: Place, request_: tuple[str, str]) -> None:
    _hang(place, *request_)
    worker = place.start("save")
    wait_until(lambda: place.server.seen, what="it hangs")
    place.cancel(worker)
    assert not place.has_root()


@pytest.mark.parametrize("request_", HANGS["restore"], ids=" ".join)
def test_a_restore_whose_store_hangs(saved: Place, request_: tuple[str, str]) -> None:
    _hang(saved, *request_)
    worker = saved.start("restore", "b0")
    wait_until(lambda: saved.server.seen, what="it hangs")
    saved.cancel(worker)


def _hang(place: Place, method: str, prefix: str) -> None:
    place.server.hangs = lambda said, name: said == method and name.startswith(prefix)


def test_a_store_that_hangs_from_the_order_on(place: Place) -> None:
    # So that not even the note can be left that the session is over.
    place.server.hangs = lambda _method, name: any(place.server.seen) or name.startswith("chunks/")
    worker = place.start("save")
    wait_until(lambda: len(place.server.seen) >= 2, what="it hangs")
    place.cancel(worker)


@pytest.mark.parametrize("name", ["roots/", "sessions/", "chunks/"])
def test_a_save_that_waits_for_the_next_try(place: Place, name: str) -> None:
    place.server.fails = lambda _method, asked: asked.startswith(name)
    worker = place.start("save")
    wait_until(lambda: len(place.server.seen) >= 3, what="it waits for longer")
    place.cancel(worker)


@pytest.mark.parametrize("name", ["roots/", "segments/", "chunks/"])
def test_a_restore_that_waits_for_the_next_try(saved: Place, name: str) -> None:
    saved.server.fails = lambda _method, asked: asked.startswith(name)
    worker = saved.start("restore", "b0")
    wait_until(lambda: len(saved.server.seen) >= 3, what="it waits for longer")
    saved.cancel(worker)


def test_a_save_and_a_restore_that_keep_to_a_limit(saved: Place) -> None:
    worker = saved.start("restore", "b0", limit=1 << 10)
    time.sleep(1.0)
    saved.cancel(worker)
    worker = saved.start("save", limit=1 << 10)
    wait_until(lambda: any(saved.server.objects.list("sessions/")), what="it has begun")
    time.sleep(0.5)
    saved.cancel(worker)
    assert not saved.has_root()


def test_a_save_and_a_restore_in_the_middle(place: Place) -> None:
    with place.source.open("wb") as file:  # much to read and to write, little to store
        for at in range(0, LARGE, 4 << 20):
            file.seek(at)
            file.write(os.urandom(4096))
        file.truncate(LARGE)
    os.truncate(place.target, LARGE)
    worker = place.start("save", size_bytes=LARGE)
    wait_until(lambda: place.chunks() > 3, what="it has begun")
    place.cancel(worker)
    assert not place.has_root()
    assert place.start("save", size_bytes=LARGE).end()[0] == 0
    worker = place.start("restore", size_bytes=LARGE)
    wait_until(lambda: place.target.stat().st_blocks > 0, what="it has begun")
    place.cancel(worker)
