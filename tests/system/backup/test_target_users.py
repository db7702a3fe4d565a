"""A restore onto what something else uses is refused before a byte is written."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner

from lunr.backup.cli import engine
from lunr.backup.read.target_users import find_users


def test_a_mounted_device_and_its_image(xfs_mount: Path, tmp_path: Path) -> None:
    image = xfs_mount.parent / "image"
    devices = subprocess.run(
        ["findmnt", "-no", "SOURCE", xfs_mount], capture_output=True, text=True, check=True
    )
    device = Path(devices.stdout.strip())
    kept = xfs_mount / "kept"
    kept.write_bytes(b"mine")
    disk, store = tmp_path / "disk.img", f"files:{tmp_path}/store"
    disk.write_bytes(b"saved")
    run = CliRunner().invoke
    assert run(engine, ["save", str(disk), "--id", "a", "--store", store]).exit_code == 0
    for target, use in ((device, "mounted"), (image, f"below {device}")):
        refused = run(engine, ["restore", "a", str(target), "--store", store])
        assert refused.exit_code == 1
        assert use in refused.output, refused.output
    assert kept.read_bytes() == b"mine"
    assert find_users(tmp_path / "none") == []
