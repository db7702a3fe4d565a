"""``lunr-live``: machines in their turn, kept apart from each other's troubles."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from lunr.live.backup import groups
from lunr.live.qemu.qmp import Monitor
from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.conftest import Vault
from tests.system.live.kills.test_kill import killed
from tests.system.live.machines import Machine


def test_it_backs_up_again_and_again_and_keeps_few(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    machine.write_some(random.Random())
    left = vault.backup(machine)
    vault.repository.delete_root(left.group_id)  # as of a backup that was killed
    config = tmp_path / "live.toml"
    config.write_text(f"""
[store]
url = "{vault.url}"
[[machine]]
name = "gone"
qmp = "{tmp_path}/nobody"
every = 1
[[machine]]
name = "vm"
qmp = "{machine.qmp}"
scratch = "{tmp_path}"
every = 1
keep = 2
""")
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "lunr.live.daemon.main", "--config", str(config)],
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
    try:
        wait_until(lambda: "Deleted vm-" in (tmp_path / "log").read_text(), what="retention")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0
    finally:
        daemon.kill()
        daemon.wait()
    said = (tmp_path / "log").read_text()
    assert "alpha incremental" in said
    assert "[gone] Not backed up" in said
    found = groups.listed(vault.repository, "vm")
    assert 2 <= len(found) <= 3  # it may have been stopped between the two
    assert vault.restored(found[0]) == machine.contents()
    assert groups.unfinished(vault.repository, "vm") == {}
    machine.assert_untouched()


@contextlib.contextmanager
def daemon(tmp_path: Path, config: str) -> Iterator[subprocess.Popen[bytes]]:
    path = tmp_path / "live.toml"
    path.write_text(config)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lunr.live.daemon.main", "--config", str(path)],
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_machine_that_was_stopped_goes_on_before_its_time(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    vault.backup(machine)
    assert killed(machine, vault, "block-export-add", "alone")
    machine.guest.execute("blockdev-add", {"driver": "null-co", "node-name": "lunr-cutting"})
    machine.guest.execute("stop")
    config = f"""
[store]
url = "{vault.url}"
[[machine]]
name = "gone"
qmp = "{tmp_path}/nobody"
[[machine]]
name = "vm"
qmp = "{machine.qmp}"
"""
    with daemon(tmp_path, config) as process:
        wait_until(lambda: "the guest goes on" in (tmp_path / "log").read_text(), what="it looks")
        wait_until(lambda: "lunr-cutting" not in machine.nodes(), what="the machine is put right")
        machine.assert_untouched()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    said = (tmp_path / "log").read_text()
    assert "[gone] Not cleaned up" in said
    assert "[vm] Saved" not in said  # it is not due


def config_of(machine: Machine, vault: Vault, every: int) -> str:
    """The configuration of a daemon for one machine, every so many seconds."""
    return f"""
[store]
url = "{vault.url}"
[[machine]]
name = "vm"
qmp = "{machine.qmp}"
scratch = "{vault.folder}"
every = {every}
"""


@pytest.mark.parametrize("ago", [3598.0, 7200.0], ids=["not yet due", "overdue"])
def test_a_restart_keeps_the_time(
    machine: Machine, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ago: float
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=ago)

    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Then:
            return cls.fromtimestamp(before.timestamp(), UTC)

    with monkeypatch.context() as patch:
        patch.setattr("lunr.live.backup.backup.datetime", Then)
        vault.backup(machine)
    config = config_of(machine, vault, every=3600)
    began = datetime.now(UTC)
    with daemon(tmp_path, config) as process:
        wait_until(lambda: "[vm] Saved" in (tmp_path / "log").read_text(), what="its backup")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    newest, first = groups.listed(vault.repository, "vm")
    due = max(began, before + timedelta(hours=1))
    assert datetime.fromisoformat(first.created_at) == before
    assert datetime.fromisoformat(newest.created_at) >= due


def test_it_is_killed_amid_a_backup(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random(), 20)
    config = config_of(machine, vault, every=1)
    for _ in range(2):
        with daemon(tmp_path, config) as process:
            wait_until(
                lambda: "lunr-0-filter" in machine.nodes(), what="a backup runs", interval=0.001
            )
            process.kill()
        # QEMU serves the next one when the guard is done.
        Monitor.open(machine.qmp, PATIENCE).close()
        machine.assert_untouched()
        machine.write_some(random.Random(), 3)
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()


def test_the_guard_outlives_the_service() -> None:
    unit = (Path(__file__).parents[3] / "etc/systemd/lunr-live.service").read_text()
    assert "\nKillMode=process\n" in unit


def test_a_bad_configuration_ends_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lunr.live.daemon.main", "--config", str(tmp_path / "nowhere")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "The configuration can't be used" in done.stderr
