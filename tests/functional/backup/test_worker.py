"""The worker as the agent uses it: a child process, spoken to in JSON lines."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lunr.backup.format.names import Geometry, Kind, Ref
from lunr.backup.format.roots import Root, Statistics
from lunr.backup.format.segments import encode
from lunr.backup.keys import derive
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.storage.jobs.backups import MOST_CHANGED
from tests.support.thorough import THOROUGH
from tests.support.waiting import PATIENCE, SOON, wait_until
from tests.unit.backup.support import load_bytes

KEY = "5a" * 32
WORKER = ("-m", "lunr.backup.worker")
ON_A_LARGE_MACHINE = (
    "-c",
    "import os, pathlib, runpy, sys\n"
    "def tell_memory_and_leave(code, leave=os._exit):\n"
    "    sys.stderr.write(pathlib.Path('/proc/self/status').read_text())\n"
    "    sys.stderr.flush()\n"
    "    leave(code)\n"
    "os.cpu_count, os._exit = lambda: 64, tell_memory_and_leave\n"
    "runpy.run_module('lunr.backup.worker', run_name='__main__')",
)


class Worker:
    def __init__(self, **task: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.tell(json.dumps(task))

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, events and log."""
        assert self.process.stdout
        events = [json.loads(line) for line in self.process.stdout]
        code = self.process.wait()
        assert self.process.stdin and self.process.stderr
        self.process.stdin.close()
        log = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, events, log


class Place:
    def __init__(self, folder: Path) -> None:
        self.url = f"files:{folder}/store"
        self.source = folder / "source"
        self.target = folder / "target"

    def worker(self, task: str, **fields: Any) -> Worker:
        return Worker(
            task=task,
            store={"url": self.url, "options": {}},
            key=KEY,
            repository="account",
            concurrency=2,
            compression="zstd",
            **fields,
        )

    def do(self, task: str, **fields: Any) -> dict[str, Any]:
        code, events, log = self.worker(task, **fields).end()
        assert code == 0, (events, log)
        assert KEY not in log
        assert {event["event"] for event in events[:-1]} <= {"progress"}
        assert events[-1]["event"] == "done"
        return dict(events[-1]["result"])

    def fail(self, task: str, **fields: Any) -> dict[str, Any]:
        code, events, _ = self.worker(task, **fields).end()
        assert code == 1
        assert events[-1]["event"] == "failed"
        return events[-1]

    def save(self, backup_id: str, parent_id: str | None = None) -> dict[str, Any]:
        return {
            "source": str(self.source),
            "size_bytes": self.source.stat().st_size,
            "backup_id": backup_id,
            "volume_id": "volume",
            "parent_id": parent_id,
            "condemned": [],
            "created_at": "2026-11-23T00:00:00Z",
        }

    def repository(self) -> Repository:
        store = open_store(self.url, "account")
        return Repository(store, derive.derive(bytes.fromhex(KEY), "account"))

    def files(self) -> list[Path]:
        return [path for path in Path(self.url[6:]).rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_life_of_two_backups(place: Place) -> None:
    first = os.urandom(9 << 20) + bytes(8 << 20)
    place.source.write_bytes(first)
    did = place.do("save", **place.save("b1"))
    assert did["bytes_read"] == len(first)
    assert did["parent_id"] is None
    assert did["written"]
    assert place.do("save", **place.save("b1")) == {**did, "written": False}
    second = first[: 4 << 20] + b"changed" + first[(4 << 20) + 7 :]
    place.source.write_bytes(second)
    did = place.do("save", **place.save("b2", "b1"))
    assert did["parent_id"] == "b1"
    assert did["objects_stored"] == 2
    for backup_id, data, patched in (("b1", first, 0), ("b2", second, 32 << 10)):
        place.target.write_bytes(b"\xff" * len(data))
        done = place.do(
            "restore",
            backup_id=backup_id,
            target=str(place.target),
            size_bytes=len(data),
            target_is_zero=False,
        )
        assert done.keys() == {"bytes_read", "seconds"}
        assert place.target.read_bytes() == data
        assert place.do("verify", backup_ids=[backup_id])["bytes_read"] == (12 << 20) + patched
    assert place.do("delete", backup_id="b1") == {"deleted": True}
    assert place.do("delete", backup_id="b1") == {"deleted": False}
    found = place.do("collect", required=["b2"])
    assert found["condemned"] == 1  # the segment: its chunks are the bases of b2's
    swept = place.do("sweep", required=["b2"], collection=found["collection"])
    assert swept["deleted"] == 1
    assert place.do("verify", backup_ids=["b2"])["bytes_read"] == (12 << 20) + patched
    place.do("delete", backup_id="b2")
    found = place.do("collect", keep=[])
    place.do("sweep", keep=[], collection=found["collection"])
    assert place.do("collect", keep=[]) == {
        "collection": None,
        "condemned": 0,
        "unswept": [],
    }
    assert place.files() == []


def test_only_what_may_have_changed_is_read(place: Place) -> None:
    block = 32 << 10
    data = bytearray(os.urandom(9 << 20))
    place.source.write_bytes(data)
    place.do("save", **place.save("b1"))
    data[5 * block : 5 * block + 3] = b"one"
    data[200 * block : 200 * block + 3] = b"two"
    place.source.write_bytes(data)
    changed = [[5 * block, 6 * block], [200 * block + 1, 200 * block + 2]]
    did = place.do("save", **place.save("b2", "b1"), changed=changed)
    assert did["bytes_read"] == 2 * block
    assert place.do("save", **place.save("b3", "b2"), changed=[])["bytes_read"] == 0
    # Of what is not there nobody knows what has changed since.
    assert place.do("save", **place.save("b4", "none"), changed=[])["bytes_read"] == len(data)
    assert place.do("save", **place.save("b5"), changed=[])["bytes_read"] == len(data)
    for backup_id in ("b2", "b3", "b4", "b5"):
        place.target.write_bytes(bytes(len(data)))
        place.do("restore", backup_id=backup_id, target=str(place.target), size_bytes=len(data))
        assert place.target.read_bytes() == data


def test_what_another_backup_has_is_not_stored_again(place: Place) -> None:
    data = os.urandom(9 << 20)
    place.source.write_bytes(data)
    place.do("save", **place.save("b1"))
    other = {**place.save("b2"), "volume_id": "other", "like": ["none", "b1"]}
    assert place.do("save", **other)["objects_stored"] == 1  # the segment
    refused = place.fail("save", **{**other, "backup_id": "b3", "like": ["../b1"]})
    assert refused["code"] == "invalid_field"
    place.target.write_bytes(bytes(len(data)))
    place.do("restore", backup_id="b2", target=str(place.target), size_bytes=len(data))
    assert place.target.read_bytes() == data


@pytest.mark.parametrize("parent_id", ["b1", "none"] if THOROUGH else ["b1"])
def test_the_memory_of_a_save_is_bounded(
    place: Place, parent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many changes as a node tells, in a volume of 1 TiB; other backups with a million chunks.
    block, size = 32 << 10, 1 << 40

    def scatter() -> None:
        with place.source.open("r+b") as file:
            file.truncate(size)
            for at in range(0, size, size // 16):
                file.seek(at)
                file.write(os.urandom(16 << 20))

    place.source.touch()
    scatter()
    if parent_id != "none":
        place.do("save", **place.save(parent_id))
    scatter()
    store_many_chunks(place.repository(), "many", 1024)
    step = size // MOST_CHANGED
    changed = [[at, at + block] for at in range(0, size, step)]
    task = {**place.save("b2", parent_id), "like": ["many"], "changed": changed}
    monkeypatch.setattr("tests.functional.backup.test_worker.WORKER", ON_A_LARGE_MACHINE)
    peak = peak_memory(place.worker("save", **task))
    print(f"{peak >> 20} MiB")
    assert peak < 300 << 20


def store_many_chunks(repository: Repository, backup_id: str, segments: int) -> None:
    """A backup of as many segments full of chunks, whose objects nobody has stored."""
    token, geometry = bytes(8), Geometry()
    found = []
    for _ in range(segments):
        chunks = [Ref(os.urandom(32), token) for _ in range(geometry.segment_chunks)]
        ref, raw = encode(chunks, token, repository.keys)
        repository.store.put(ref.name(Kind.SEGMENT), raw)
        found.append(ref)
    repository.store_root(
        Root(
            backup_id=backup_id,
            volume_id="other",
            parent_id=None,
            size_bytes=segments * geometry.segment_chunks * geometry.chunk,
            created_at="2026-11-23T00:00:00Z",
            geometry=geometry,
            segments=tuple(found),
            key_id=repository.keys.id,
            consistency_group=None,
            statistics=Statistics(0, 0, 0, 0, 0, 0.0),
        )
    )
    repository.store.close()


def peak_memory(worker: Worker) -> int:
    """Bytes of memory that a worker on a large machine had at most."""
    code, events, log = worker.end()
    assert code == 0, (events, log)
    # Not the ru_maxrss that wait4(2) tells: execve(2) lets it begin with that of the parent.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", log, re.MULTILINE)
    return int(peak) << 10


def test_the_limit_is_kept_and_used(place: Place) -> None:
    data = os.urandom(24 << 20)
    place.source.write_bytes(data)
    did = place.do("save", **place.save("b1"), limit=12 << 20)
    assert 1.8 <= did["seconds"] <= 1.8 + SOON
    place.target.write_bytes(bytes(len(data)))
    done = place.do("restore", backup_id="b1", target=str(place.target), limit=12 << 20)
    assert 1.8 <= done["seconds"] <= 1.8 + SOON
    assert place.target.read_bytes() == data
    for wrong in (-1, "fast", None):
        assert place.fail("verify", backup_ids=["b1"], limit=wrong)["code"] == "bad_request"


@pytest.mark.parametrize(
    "changed",
    [7, {}, "all", [7], [[1]], [[1, 2, 3]], [["a", "b"]], [[5, 5]], [[-1, 3]], [[4, 8], [0, 4]]],
)
def test_changes_that_make_no_sense_are_refused(place: Place, changed: Any) -> None:
    place.source.write_bytes(b"x" * 1000)
    refused = place.fail("save", **place.save("b1"), changed=changed)
    assert refused["code"] == "bad_request"
    assert "changed" in refused["reason"]
    assert place.files() == []


def test_failures_tell_their_code(place: Place) -> None:
    place.source.write_bytes(b"x" * 1000)
    small = dict(place.save("b1"), size_bytes=2000)
    assert place.fail("save", **small)["code"] == "source_error"
    place.do("save", **place.save("b1"))
    place.target.write_bytes(b"")
    fields = {"backup_id": "b1", "target": str(place.target), "size_bytes": 1000}
    assert place.fail("restore", **fields)["code"] == "target_too_small"
    assert place.fail("restore", backup_id="none", target="t")["code"] == "backup_missing"
    assert place.fail("verify", backup_ids=["../x"])["code"] == "invalid_field"
    assert place.fail("verify") == {
        "event": "failed",
        "code": "bad_request",
        "reason": "The request can't be understood: the task has no backup_ids.",
        "retry": False,
    }
    assert place.fail("mow")["code"] == "bad_request"
    code, events, _ = Worker(task="verify").end()
    assert (code, events[-1]["code"]) == (1, "bad_request")
    wrong = Worker(
        task="verify",
        store={"url": place.url},
        key="00" * 32,
        repository="account",
        backup_ids=["b1"],
    )
    (damaged,) = wrong.end()[1][-1]["result"]["damaged"]
    assert damaged["backup_ids"] == ["b1"]
    assert "another master key" in damaged["reason"]
    (chunk,) = (path for path in place.files() if path.parts[-3] == "chunks")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    damaged = place.do("verify", backup_ids=["b1", "none"])["damaged"]
    assert [group["backup_ids"] for group in damaged] == [["b1"], ["none"]]
    assert chunk.name in damaged[0]["reason"]
    damaged = place.do("verify", backup_ids=["b1"], share=[1, 2])["damaged"]
    assert [group["backup_ids"] for group in damaged] == [["b1"]]


def slow_save(place: Place) -> Worker:
    """A save that waits for ever: its source is a pipe... of a file that is long to read."""
    place.source.write_bytes(b"")
    with place.source.open("r+b") as file:
        for number in range(512):
            file.seek(number << 22)
            file.write(os.urandom(4096))
        file.truncate(512 << 22)
    worker = place.worker("save", **place.save("b1"))
    wait_until(lambda: len(place.files()) > 3, what="the save has begun")
    return worker


def test_cancel(place: Place) -> None:
    worker = slow_save(place)
    worker.tell("cancel")
    worker.process.wait(SOON)
    code, events, _ = worker.end()
    assert (code, events[-1]["code"]) == (1, "cancelled")
    assert not [path for path in place.files() if path.parts[-2] == "roots"]


def test_a_worker_does_not_outlive_its_parent(place: Place) -> None:
    worker = slow_save(place)
    assert worker.process.stdin
    worker.process.stdin.close()
    assert worker.process.wait(PATIENCE) == 2
    for pipe in (worker.process.stdout, worker.process.stderr):
        assert pipe
        pipe.close()


def test_a_save_that_is_killed_leaves_nothing_for_long(place: Place) -> None:
    data = os.urandom(48 << 20)
    place.source.write_bytes(data)
    repository = place.repository()
    for _ in range(8):
        before = len(place.files())
        worker = place.worker("save", **place.save("b1"))
        wait_until(lambda count=before: len(place.files()) > count, what="it began")
        time.sleep(random.uniform(0, 0.15))
        worker.process.kill()
        worker.end()
        if "b1" in repository.backup_ids():
            assert load_bytes(repository, "b1") == data
            repository.delete_root("b1")
    while (found := collect(repository)).collection is not None:
        sweep(repository, found.collection)
    assert place.files() == []
    place.do("save", **place.save("b1"))
    assert load_bytes(repository, "b1") == data
    repository.store.close()


@pytest.mark.parametrize("worker", ["lunr.backup.worker", "lunr.backup.lazy_image.process"])
def test_it_loads_little(worker: str) -> None:
    """One is started for each job: what it loads delays every backup and restore."""
    code = f"import {worker}, sys; print(*(name.partition('.')[0] for name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(said.stdout.split())
    assert "blake3" in loaded
    assert not loaded & {"oslo_config", "swiftclient", "requests", "click", "rich", "eventlet"}
