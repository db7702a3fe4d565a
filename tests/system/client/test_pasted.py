"""What `lunr export show` prints can be pasted, and works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.client.cli.context import read_openrc
from tests.support.services import need_command, need_root
from tests.support.waiting import PATIENCE
from tools.demos.stage import Lunr


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a person beside a whole lunr of the test's own."""
    need_root()
    for command, package in (
        ("tgtd", "tgt"),
        ("mkfs.xfs", "xfsprogs"),
        ("setpriv", "util-linux"),
        ("qemu-img", "qemu-utils"),
    ):
        need_command(command, package)
    if not (Path(sys.executable).parent / "lunr").exists():
        pytest.skip("needs the installed command `lunr` (pip install -e .)")
    service = Lunr(tmp_path / "lunr")
    try:
        service.wait_until_up()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield {**os.environ, **read_openrc(tmp_path / "lunr" / "openrc"), "PATH": path}
    finally:
        service.stop()


def bash(env: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_line_for_qemu_logs_in(env: dict[str, str]) -> None:
    made = bash(
        env,
        "lunr volume create --size 1 --id v1 && "
        "lunr export create v1 --ip 127.0.0.1 --initiator iqn.2026-11.io.lunr.test:pasted",
    )
    assert made.returncode == 0, made.stderr
    [line] = [line for line in made.stdout.splitlines() if line.startswith("qemu-img ")]
    pasted = bash(env, line)
    assert "virtual size: 1 GiB (1073741824 bytes)" in pasted.stdout, pasted.stderr

    other = bash(env, line.replace("test:pasted", "test:other"))
    assert other.returncode != 0
    wrong = bash(env, line.replace("lunr export password v1", "echo wrong-password"))
    assert wrong.returncode != 0
    assert bash(env, "lunr export delete v1 && lunr volume delete v1").returncode == 0
