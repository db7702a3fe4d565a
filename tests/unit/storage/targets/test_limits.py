"""Whose limits of I/O are written for which device; that they hold is measured in the VM.

The cgroup is a folder in which io.max takes lines as the kernel does, devices are nodes without
a driver behind them.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from lunr.storage.targets import limits
from lunr.storage.targets.base import Export
from lunr.storage.targets.limits import Limits
from tests.support.target_contract import export_of

#: Numbers for local use (Documentation/admin-guide/devices.txt).
MAJOR = 240


@pytest.fixture
def io_max(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    group = tmp_path / "cgroup" / "lunr"
    group.mkdir(parents=True)
    (group.parent / "cgroup.controllers").write_text("cpu io\n")
    path = group / "io.max"
    path.touch()
    monkeypatch.setattr(limits, "CGROUPS", group.parent)
    monkeypatch.setattr(limits, "GROUP", group)
    write_text = Path.write_text

    def merging(self: Path, text: str) -> int:
        if self != path:
            return write_text(self, text)
        lines = {line.split()[0]: line for line in path.read_text().splitlines()}
        lines[text.split()[0]] = text
        kept = (line for line in lines.values() if not line.endswith("riops=max wiops=max"))
        return write_text(self, "".join(f"{line}\n" for line in kept))

    monkeypatch.setattr(Path, "write_text", merging)
    return path


def node(path: Path, minor: int) -> Path:
    """A block device; one that was there is replaced."""
    path.unlink(missing_ok=True)
    try:
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(MAJOR, minor))
    except PermissionError:
        pytest.skip("only root can make device nodes")
    return path


def limited(path: Path, volume_id: str = "v1", read_iops: int = 10) -> Export:
    return dataclasses.replace(export_of(path, volume_id), read_iops=read_iops)


def none_found() -> list[int]:
    return []


def test_a_volume_that_moved_leaves_no_limits_behind(tmp_path: Path, io_max: Path) -> None:
    filling, own = node(tmp_path / "clone", 1), node(tmp_path / "volume", 2)
    mine = Limits(none_found)
    mine.set(limited(filling))
    assert io_max.read_text() == "240:1 riops=10 wiops=max\n"
    mine.set(limited(own))
    assert io_max.read_text() == "240:2 riops=10 wiops=max\n"
    # Another's volume has the number now that the volume was filled by.
    filling.unlink()
    node(tmp_path / "another", 1)
    mine.keep()
    assert io_max.read_text() == "240:2 riops=10 wiops=max\n"
    mine.clear("v1", own)
    assert io_max.read_text() == ""


@pytest.mark.parametrize("unlimited", [False, True])
def test_a_number_that_is_anothers_by_now_is_left_alone(
    tmp_path: Path, io_max: Path, unlimited: bool
) -> None:
    first = node(tmp_path / "first", 1)
    mine = Limits(none_found)
    mine.set(limited(first))
    io_max.write_text("240:1 riops=max wiops=max")  # the device went, and its limits with it
    first.unlink()
    second = limited(node(tmp_path / "second", 1), "v2", 0 if unlimited else 20)
    mine.set(second)
    mine.keep()
    mine.clear("v1")
    mine.keep()
    assert io_max.read_text() == ("" if unlimited else "240:1 riops=20 wiops=max\n")


def test_a_device_that_came_back_as_another_has_its_limits_when_it_is_exported(
    tmp_path: Path, io_max: Path
) -> None:
    path = node(tmp_path / "volume", 1)
    mine = Limits(none_found)
    mine.set(limited(path))
    io_max.write_text("240:1 riops=max wiops=max")
    mine.set(limited(node(path, 2)))
    assert io_max.read_text() == "240:2 riops=10 wiops=max\n"


def test_what_somebody_removed_is_put_back(tmp_path: Path, io_max: Path) -> None:
    mine = Limits(none_found)
    mine.set(limited(node(tmp_path / "volume", 1)))
    io_max.write_text("240:1 riops=max wiops=max")
    mine.keep()
    assert io_max.read_text() == "240:1 riops=10 wiops=max\n"
