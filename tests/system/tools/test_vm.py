"""tools/vm hands on what a command says and how it ends, and ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.services import CHECKOUT, need_command
from tests.support.waiting import wait_until
from tools.virtual.machine import CACHE


def vm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    need_command("qemu-system-x86_64", "qemu-system-x86")
    if not (CACHE / "initramfs.cpio").exists():
        pytest.skip("needs the VM's kernel: tools/setup --vm")
    return subprocess.run(
        [CHECKOUT / "tools/vm", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_output_exit_code_arguments_and_shares(tmp_path: Path) -> None:
    script = 'echo "$1 on $(uname -n)"; echo oops >&2; cat >"$2/written"; ls /dev/vda; exit 7'
    words = ("a 'quoted'  \"word\" $HOME", str(tmp_path))
    done = vm("--disk", "64M", "--share", tmp_path, "--", "sh", "-c", script, "sh", *words)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [f"{words[0]} on lunr-vm", "oops", "/dev/vda"]
    assert (tmp_path / "written").read_bytes() == b""


def test_it_ends_when_time_is_up_and_when_it_is_told_to(tmp_path: Path) -> None:
    assert vm("--timeout", "2", "--", "sleep", "60").returncode == 124
    process = subprocess.Popen([CHECKOUT / "tools/vm", "run", "--", "sleep", "61"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: children.read_text().split(), what="qemu")
    qemu = int(children.read_text().split()[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{qemu}").exists()
