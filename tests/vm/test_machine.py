"""The VM is what the other tests take it for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm.conftest import DISK, PLAIN_DISK, SMALL_DISK


@pytest.mark.parametrize("module", ["dm_snapshot", "dm_thin_pool", "dm_flakey", "iscsi_tcp"])
def test_the_kernel_has_its_modules(module: str) -> None:
    subprocess.run(["modprobe", module], check=True)


def test_the_disks_differ_in_what_they_can_do() -> None:
    def most(disk: Path, what: str) -> int:
        return int(Path(f"/sys/block/{disk.name}/queue/{what}").read_text())

    assert most(DISK, "discard_max_bytes")
    assert not most(PLAIN_DISK, "discard_max_bytes")
    assert not most(PLAIN_DISK, "write_zeroes_max_bytes")
    assert SMALL_DISK.is_block_device()


def test_what_is_written_does_not_reach_the_host() -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", "/"], capture_output=True, text=True, check=True
    )
    assert kind.stdout.strip() == "overlayfs"
