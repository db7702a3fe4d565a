"""The process that serves a filling volume is one, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.storage.restore import process as module
from lunr.storage.restore.process import RestoreProcess, attach, connect_or_spawn, take_lock
from tests.support.waiting import PATIENCE, wait_until

#: Listens as the real one does, tells what it was told, and ends when told to.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from lunr.backup.lazy_image.control import Control

task = json.loads(sys.stdin.readline())
time.sleep(task["pause"])
control = Control(sys.stdin, sys.stdout)
control.open(Path(task["control"]))
control.report("mounted", secret=task["secret"])

def handle(line, answer):
    answer("heard", line=line.strip())
    if line.strip() == "end":
        control.report("done")
        control.close()
        os._exit(0)

control.listen(handle)
time.sleep(600)
"""
COMMAND = (sys.executable, "-c", PROGRAM)
#: A path that is far too long for a unix socket (unix(7)).
DEEP = "a" * 100


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / DEEP / DEEP
    folder.mkdir(parents=True)
    yield folder
    lock = take_lock(folder)
    if lock is None:
        attach(folder).kill()
        lock = wait_until(lambda: take_lock(folder))
    os.close(lock)


def start(folder: Path, pause: float = 0.0) -> RestoreProcess:
    return connect_or_spawn(folder, {"secret": "s3cret", "pause": pause}, COMMAND)


def test_it_is_started_once_and_then_taken_over(folder: Path) -> None:
    first = start(folder)
    told = first.events()
    assert first.is_new and next(told) == {"event": "mounted", "secret": "s3cret"}
    second = start(folder)
    others = second.events()
    assert not second.is_new and next(others)["event"] == "mounted"
    second.send("hello")
    assert next(others) == {"event": "heard", "line": "hello"}
    first.send("end")
    assert [event["event"] for event in told] == ["heard", "done"]
    assert list(others)[-1:] == [{"event": "done"}]
    first.close()
    second.close()
    lock = wait_until(lambda: take_lock(folder), what="it is gone")
    os.close(lock)


def test_one_that_is_just_beginning_is_waited_for(folder: Path) -> None:
    first = start(folder, pause=0.5)
    second = start(folder)
    assert not second.is_new
    assert next(second.events())["event"] == "mounted"
    first.close()
    second.close()


def test_killed_another_is_started(folder: Path) -> None:
    first = start(folder)
    told = first.events()
    next(told)
    first.kill()
    assert list(told) == []
    first.close()
    second = start(folder)
    assert second.is_new
    next(second.events())
    second.close()


def test_it_outlives_whoever_started_it(folder: Path) -> None:
    code = (
        "import sys, os, pathlib\n"
        "from lunr.storage.restore.process import connect_or_spawn\n"
        f"worker = connect_or_spawn(pathlib.Path({str(folder)!r}), "
        f"{{'secret': 'x', 'pause': 0}}, (sys.executable, '-c', {PROGRAM!r}))\n"
        "next(worker.events())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, check=False)
    assert done.returncode == -9
    found = start(folder)
    assert not found.is_new
    told = found.events()
    assert next(told)["event"] == "mounted"
    found.send("hello")
    assert next(told) == {"event": "heard", "line": "hello"}
    found.close()


def test_of_many_at_once_one_starts_it(folder: Path) -> None:
    found: list[RestoreProcess] = []
    threads = [
        threading.Thread(target=lambda: found.append(start(folder, pause=0.2))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(worker.is_new for worker in found) == [False] * 5 + [True]
    for worker in found:
        worker.close()


def test_one_that_never_answers_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT", 0.3)
    first = start(folder, pause=1.5)
    with pytest.raises(module.ProcessSilent):
        start(folder)
    next(first.events())
    first.close()


def test_secrets_are_in_no_arguments(folder: Path) -> None:
    worker = start(folder)
    next(worker.events())
    told = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended
            if (entry / "cwd").readlink() == folder:
                told.append((entry / "cmdline").read_bytes() + (entry / "environ").read_bytes())
    assert told
    assert not [words for words in told if b"s3cret" in words]
    worker.close()
