"""``lunr backup mount``: a person looks into a backup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import need_fuse
from tests.support.waiting import PATIENCE, wait_until

ENGINE = [sys.executable, "-m", "lunr.backup.cli"]
BACKUP = [sys.executable, "-m", "lunr.client.cli.main", "backup"]


@pytest.fixture
def backup(tmp_path: Path) -> bytes:
    need_fuse()
    data = os.urandom(5 << 20)
    (tmp_path / "disk").write_bytes(data)
    (tmp_path / "mnt").mkdir()
    save = [*ENGINE, "save", tmp_path / "disk", "--id", "b1", "--store", f"files:{tmp_path}/store"]
    subprocess.run(save, check=True, capture_output=True)
    return data


@pytest.mark.parametrize("end", ["umount", "ctrl-c"])
def test_a_backup_is_looked_into(tmp_path: Path, backup: bytes, end: str) -> None:
    point = tmp_path / "mnt"
    env = {**os.environ, "LUNR_STORE": f"files:{tmp_path}/store"}
    with subprocess.Popen(
        [*BACKUP, "mount", "b1", point], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: (point / "volume").exists() or process.poll() is not None)
        assert (point / "volume").read_bytes() == backup
        if end == "umount":
            done = subprocess.run([*BACKUP, "umount", point], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert list(point.iterdir()) == []


def test_what_can_not_be_done_is_said(tmp_path: Path, backup: bytes) -> None:
    def said(*words: str | Path) -> str:
        done = subprocess.run(
            [*BACKUP, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr

    store = ["--store", f"files:{tmp_path}/store"]
    assert "no backup b9" in said("mount", "b9", tmp_path / "mnt", *store)
    assert "letters" in said("mount", "../b1", tmp_path / "mnt", *store)
    assert "nothing is mounted" in said("umount", tmp_path / "mnt")
