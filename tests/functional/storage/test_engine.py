"""The engine's child processes, with a worker that misbehaves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lunr.common import errors
from lunr.storage import engine as engine_module
from lunr.storage import system
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.engine import Engine, EngineDied
from tests.support.waiting import SOON
from tests.system.storage.nodes import KEY, ODD_WORKER


def job() -> ClaimedJob:
    return ClaimedJob(
        {
            "id": "j1",
            "kind": "backup.verify",
            "lease": "l",
            "lease_seconds": 60,
            "attempt": 1,
            "payload": {},
        }
    )


def engine(**others: Any) -> Engine:
    given = {"url": "files:/nowhere", "options": {"key": "hush"}, "key": KEY}
    return Engine(**{**given, "command": ODD_WORKER, **others})


@pytest.mark.parametrize(
    ("how", "said"),
    [("die", "signal 9"), ("babble", "Segmentation fault"), ("bad-lines", "exit|said")],
)
def test_a_worker_that_ends_badly_can_be_tried_again(how: str, said: str) -> None:
    with pytest.raises(EngineDied, match=said) as caught:
        engine().run(job(), "verify", backup_id=how)
    assert caught.value.retry


def test_a_failure_keeps_its_code() -> None:
    with pytest.raises(errors.RemoteError, match="full") as caught:
        engine().run(job(), "verify", backup_id="full")
    assert caught.value.code == "store_full"


@pytest.mark.parametrize(("how", "reason"), [("slow", Stop.CANCELLED), ("stubborn", Stop.LOST)])
def test_stopping_is_quick(how: str, reason: Stop) -> None:
    stopped = job()
    timer = threading.Timer(0.5, stopped.stop, [reason])
    timer.start()
    started = time.monotonic()
    with pytest.raises(errors.Cancelled):
        engine().run(stopped, "verify", backup_id=how)
    assert time.monotonic() - started < SOON
    timer.join()


def test_a_stubborn_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "STOP_GRACE", 0.5)
    stopped = job()
    timer = threading.Timer(0.5, stopped.stop, [Stop.CANCELLED])
    timer.start()
    with pytest.raises(errors.Cancelled):
        engine().run(stopped, "verify", backup_id="stubborn")
    timer.join()


def test_progress_and_bytes_are_told() -> None:
    moved: list[int] = []
    stopped = job()
    timer = threading.Timer(1.0, stopped.stop, [Stop.LOST])
    timer.start()
    with pytest.raises(errors.Cancelled):
        engine(moved=moved.append).run(stopped, "verify", backup_id="slow")
    timer.join()
    assert sum(moved) > 0


def test_no_secret_is_shown() -> None:
    assert "hush" not in repr(engine())
    assert KEY not in repr(engine())


def test_a_missing_interpreter_is_said() -> None:
    with pytest.raises(system.CommandMissing, match="no-such-worker"):
        engine(command=["no-such-worker"]).run(job(), "verify")


def test_nothing_is_imported_from_where_the_agent_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "lunr"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of another')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.RemoteError) as caught:
        engine(command=engine_module.WORKER).run(job(), "no-such-task")
    assert caught.value.code == "bad_request"  # it ran
