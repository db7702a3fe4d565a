"""Commands that the kernel does not let go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lunr.storage import system
from tests.support import faulty


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
        monkeypatch.setattr(system, "_KILL_WAIT", 30)
        system.run(command, timeout=30)
