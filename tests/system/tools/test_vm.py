"""tools/vm hands on what a command says and how it ends, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.services import CHECKOUT, need_command
from tests.support.waiting import PATIENCE, wait_until
from tools.virtual import uml
from tools.virtual.launch import CACHE, TIMED_OUT, CannotRun, Disk, Order

VM = CHECKOUT / "tools/vm"


@pytest.fixture(params=["uml", pytest.param("qemu", marks=pytest.mark.thorough)])
def machine(request: pytest.FixtureRequest) -> str:
    """Each machine of tools/vm that can run here."""
    name: str = request.param
    if name == "uml" and uml.chosen_kernel() is None:
        pytest.skip("needs a user-mode-linux: tools/setup --vm")
    if name == "qemu":
        need_command("qemu-system-x86_64", "qemu-system-x86")
        if not (CACHE / "initramfs.cpio").exists():
            pytest.skip("needs the VM's kernel: tools/setup --vm")
    return name


def vm(
    machine: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [VM, "run", "--machine", machine, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


def test_output_exit_code_arguments_and_shares(machine: str, tmp_path: Path) -> None:
    share = tmp_path / "a share"
    share.mkdir()
    (share / "read").write_text("from here\n")
    script = (
        'echo "$1 on $(uname -n) in $LUNR_VM"; echo oops >&2; cat >"$2/written"; cat "$2/read"; '
        "blkdiscard -z /dev/vda && blkdiscard /dev/vda && blockdev --getsize64 /dev/vda /dev/vdb; "
        'blkdiscard /dev/vdb 2>/dev/null || echo plain; touch "$3/lost"; exit 7'
    )
    words = ("a 'quoted'  \"word\" $HOME", str(share), str(tmp_path))
    disks = ("--disk", "16M", "--disk", "8M,plain")
    done = vm(machine, *disks, "--share", share, "--", "sh", "-c", script, "sh", *words)
    assert done.returncode == 7, done.stderr
    assert done.stdout.decode().splitlines() == [
        f"{words[0]} on lunr-vm in 1",
        "oops",
        "from here",
        str(16 << 20),
        str(8 << 20),
        "plain",
    ]
    assert (share / "written").read_bytes() == b""
    assert not (tmp_path / "lost").exists()


def test_output_is_passed_on_byte_for_byte(machine: str, tmp_path: Path) -> None:
    output = bytes(range(256)) * 4096
    (tmp_path / "output").write_bytes(output)
    done = vm(machine, "--", "cat", tmp_path / "output")
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
    assert done.stderr == b""


def test_it_ends_when_time_is_up(machine: str) -> None:
    done = vm(machine, "--timeout", "2", "--", "sleep", "600")
    assert done.returncode == TIMED_OUT
    assert done.stderr.endswith(b"tools/vm: not done after 2 s\n")


def alive(group: int) -> list[str]:
    """The processes of a process group that are not dead yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


def started(machine: str, said: str, *command: str) -> tuple[subprocess.Popen[bytes], int]:
    """A VM whose command has said something, and the process group that it is here."""
    process = subprocess.Popen(
        [VM, "run", "--machine", machine, "--disk", "8M", "--", *command], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{said}\n".encode()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (group,) = map(int, children)
    assert alive(group)
    return process, group


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_when_it_is_told_to_end(machine: str, number: signal.Signals) -> None:
    process, group = started(machine, "up", "sh", "-c", "echo up; sleep 600 & sleep 600")
    process.send_signal(number)
    expected = -number if number == signal.SIGKILL else 128 + number
    assert process.wait(PATIENCE) == expected
    wait_until(lambda: not alive(group), what=f"the end of {alive(group)}")


def test_nothing_is_left_when_nobody_reads() -> None:
    if uml.chosen_kernel() is None:
        pytest.skip("needs a user-mode-linux: tools/setup --vm")
    process, group = started("uml", "y", "yes")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert not alive(group)


def test_a_place_for_disks_and_memory_is_found(tmp_path: Path) -> None:
    if uml.chosen_kernel() is None:
        pytest.skip("needs a user-mode-linux: tools/setup --vm")
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    # TMPDIR in a tmpfs, where no disk can be, and far down; no memory from which can be executed.
    script = (
        'mount -t tmpfs tmpfs "$1" && mount -o remount,noexec /dev/shm && '
        'export TMPDIR="$1/$2" && mkdir -p "$TMPDIR" && shift 2 && exec "$@"'
    )
    deep = "/".join(["deep"] * 40)
    command = [VM, "run", "--disk", "8M", "--memory", "256", "--", "blkdiscard", "-z", "/dev/vda"]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            tmp_path,
            deep,
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_place_for_disks_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setattr(uml, "disk_folders", lambda: [folder])
        with pytest.raises(CannotRun, match=f"none at {folder}: name one as TMPDIR"):
            uml.run(Order(["true"], [Disk(1 << 20)]), uml.Kernel(CACHE))
