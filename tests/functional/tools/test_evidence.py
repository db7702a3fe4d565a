"""What is told of a test that failed: enough to understand it, and no secrets."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.functional.tools.test_guards import run_pytest
from tests.support import evidence

FAILS = """
def test_it(tmp_path, run_folder):
    (tmp_path / "node.log").write_text("an old line\\n" * 100 + "the disk is full\\n")
    (run_folder / "log").write_text("[key] password = hunter22\\ntgtd: no such target\\n")
    assert not tmp_path.exists()
"""


def test_a_failure_tells_the_ends_of_the_logs_at_once(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "system", FAILS)
    assert code == 1
    at_once, _, summary = output.partition("= FAILURES =")
    for text in (at_once, summary):
        assert "assert not" in text
        assert "the disk is full" in text
        assert text.count("an old line") == evidence.LINES - 1
        assert "tgtd: no such target" in text
        assert "hunter22" not in text


def test_only_logs_that_the_test_wrote_to_are_told(tmp_path: Path) -> None:
    for name in ("old.log", "new.log", "log", "data"):
        (tmp_path / name).write_text(f"in {name}\n")
    os.utime(tmp_path / "old.log", (1, 1))
    told = dict(evidence.collect_sections([tmp_path], time.time() - 60))
    logs = {title for title in told if title.startswith("end of ")}
    assert logs == {f"end of {tmp_path / name}" for name in ("new.log", "log")}


def test_processes_of_the_run_are_told(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        told = dict(evidence.collect_sections([tmp_path], 0))
        process.kill()
    states = told["processes, mounts and loop devices of the run"]
    assert f"process {process.pid}: sleep 60" in states


@pytest.mark.parametrize(
    "line",
    [
        "password = SECRET1",
        '{"auth_password": "SECRET1", "id": 3}',
        "OS_PASSWORD=SECRET1",
        "X-Auth-Token: SECRET1",
        "Authorization: token SECRET1",
        "node.session.auth.password = SECRET1",
        "kek = 'SECRET1'",
        "GET /v1 gAAAAABSECRET1SECRET1SECRET1SECRET1",
        f"the key is {'5a' * 32}",
    ],
)
def test_secrets_are_hidden(line: str) -> None:
    told = evidence.hide_secrets(line)
    assert "SECRET1" not in told
    assert "5a" * 20 not in told
    assert "***" in told


def test_what_is_no_secret_stays() -> None:
    line = "backup.save of v1 failed: store_full; token_cache_time is 1; put chunks/ab12 in 0.1 s"
    assert evidence.hide_secrets(line) == line


def test_much_is_cut() -> None:
    told = evidence.shorten("\n".join(["x" * 1000] * 1000)).splitlines()
    assert len(told) == evidence.LINES
    assert {len(line) for line in told} == {evidence.LINE_LENGTH}
