"""Commands that the kernel does not let go."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.storage import engine as engine_module
from lunr.storage import system
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.engine import Engine
from tests.support.faults import faulty
from tests.support.waiting import PATIENCE
from tests.system.storage.nodes import KEY


def test_a_command_that_waits_for_a_hanging_device_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_KILL_WAIT", 0.5)
    with faulty.hanging(tmp_path / "device", seconds=4) as path:
        command = ["dd", f"if={path}", "of=/dev/null", "iflag=direct", "bs=4096", "count=1"]
        started = time.monotonic()
        with pytest.raises(system.CommandStuck, match="a device hangs") as caught:
            system.run(command, timeout=0.5)
        assert time.monotonic() - started < 3
        assert caught.value.retry
        # Others go on meanwhile, and so does this one when the device answers again.
        assert system.run(["echo", "fine"]).stdout == "fine\n"
        monkeypatch.setattr(system, "_KILL_WAIT", PATIENCE)
        system.run(command, timeout=PATIENCE)


#: A worker that reads past the page cache, where it can't be killed.
READER = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
os.preadv(file, [mmap.mmap(-1, 4096)], 0)
"""


def test_a_job_whose_worker_is_stuck_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "STOP_GRACE", 0.3)
    claimed = {"id": "j1", "kind": "backup.save", "lease": "l", "lease_seconds": 60, "attempt": 1}
    job = ClaimedJob({**claimed, "payload": {}})
    with faulty.hanging(tmp_path / "device", seconds=6) as path:
        worker = [sys.executable, "-c", READER, str(path)]
        engine = Engine(url="files:/nowhere", options={}, key=KEY, command=worker)
        timer = threading.Timer(1.0, job.stop, [Stop.LOST])
        timer.start()
        started = time.monotonic()
        with pytest.raises(errors.Cancelled):
            engine.run(job, "save")
        assert time.monotonic() - started < 4
        timer.join()
    assert "a device hangs" in caplog.text
