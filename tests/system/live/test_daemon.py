"""``lunr-live``: machines in their turn, kept apart from each other's troubles."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from lunr.live import groups
from tests.support.waiting import wait_until
from tests.system.live.conftest import Vault
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
            [sys.executable, "-m", "lunr.live.main", "--config", str(config)],
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
    try:
        wait_until(lambda: "Deleted vm-" in (tmp_path / "log").read_text(), 60, "retention")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
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


def test_a_bad_configuration_ends_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lunr.live.main", "--config", str(tmp_path / "nowhere")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "The configuration can't be used" in done.stderr
