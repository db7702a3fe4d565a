"""systemd understands the units."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.services import CHECKOUT, need_command

UNITS = CHECKOUT / "etc/systemd"


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    need_command("systemd-analyze", "systemd")
    need_command("tgtd", "tgt")
    # Where lunr is installed does not exist here, and systemd looks for the programs.
    for other in UNITS.glob("*.service"):
        text = other.read_text().replace("/opt/lunr/bin/", f"{CHECKOUT}/bin/")
        (tmp_path / other.name).write_text(text)
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=no",
        str(tmp_path / unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_mistake_in_a_unit_is_seen(tmp_path: Path) -> None:
    analyze = need_command("systemd-analyze", "systemd")
    shutil.copy(UNITS / "lunr-tgtd.service", tmp_path)
    wrong = (tmp_path / "lunr-tgtd.service").read_text().replace("KillSignal", "KillingSignal")
    (tmp_path / "lunr-tgtd.service").write_text(wrong)
    command = [analyze, "verify", "--man=no", str(tmp_path / "lunr-tgtd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "KillingSignal" in done.stderr
