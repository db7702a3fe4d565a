"""User Mode Linux: a Linux kernel that is a process of this machine, without any emulation.

It needs no root, no KVM, and from 7.2 on no ptrace. Its disks are files, its root is this
machine's, by hostfs, its memory is a file too. It is for our own tests only: with `seccomp`
the programs in it could reach its kernel's memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.virtual.launch import (
    CACHE,
    GUEST,
    CannotRun,
    Disk,
    Order,
    judge_end,
    make_image,
    started,
    wait_for_end,
    write_order,
)

#: The kernels that were fetched, each in a folder named by its version.
KERNELS = CACHE / "uml"
_MEMORY = 1536


@dataclass(frozen=True)
class Kernel:
    """A package user-mode-linux, unpacked for tools/vm."""

    folder: Path

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def program(self) -> Path:
        return self.folder / "linux.uml"

    @property
    def modules(self) -> Path:
        return self.folder / "modules"


def chosen_kernel() -> Kernel | None:
    """The kernel that tools/setup --vm has chosen, if any runs on this machine."""
    choice = KERNELS / "chosen"
    return Kernel(KERNELS / choice.read_text().strip()) if choice.exists() else None


def run(order: Order, kernel: Kernel | None = None) -> int:
    """Run the order in a UML and return its exit code.

    Args:
        order: what to run.
        kernel: another one than the chosen one.

    Raises:
        CannotRun: there is no kernel, or no place for its disks.
    """
    kernel = kernel or chosen_kernel()
    if kernel is None or not kernel.folder.exists():
        raise CannotRun("no user-mode-linux is there: tools/setup --vm")
    memory = order.memory or _MEMORY
    with (
        tempfile.TemporaryDirectory(prefix="lunr-vm-") as name,
        _images(order.disks) as images,
    ):
        folder = Path(name)
        write_order(folder, order, "uml", kernel.modules)
        (folder / "init").write_text((GUEST / "uml-init").read_text())
        (folder / "init").chmod(0o755)
        (folder / "out").mkdir()  # where the guest writes its exit code
        if order.verbose:
            print(f"tools/vm: user-mode-linux {kernel.version}", file=sys.stderr)
        argv = [
            *(str(kernel.program), f"mem={memory}M", "quiet", "noreboot", "panic=-1"),
            # Where the kernel has it, twice as fast as ptrace, which others take.
            "seccomp=auto",
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={folder}/init"),
            # The kernel's messages go to standard error, what is written to /dev/tty1 to output.
            *("con=null", "con0=null,fd:2", "con1=null,fd:1", f"uml_dir={folder}", "umid=uml"),
            *_disk_options(order.disks, images),
        ]
        # The file with its memory has no name there, either.
        environment = {**os.environ, "TMPDIR": _memory_folder(memory) or tempfile.gettempdir()}
        with (
            (folder / "console").open("wb") as console,
            started(
                argv,
                environment,
                subprocess.DEVNULL,
                subprocess.PIPE,
                console.fileno(),
                images,
            ) as process,
        ):
            timed_out = wait_for_end(process, order.timeout, partial(_pass_output, process))
        return judge_end(order, folder / "out" / "code", folder / "console", timed_out)


def _pass_output(process: subprocess.Popen[bytes]) -> None:
    """Copy what the guest says to our standard output.

    By a pipe of its own: UML would make ours non-blocking, for all who write to it.
    """
    assert process.stdout is not None
    try:
        while data := os.read(process.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # As if SIGPIPE ended us, which Python ignores; nor is what is unwritten tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _memory_folder(mebibytes: int) -> str | None:
    """Where the guest's memory is: in memory, if that has room and allows to execute."""
    folder = "/dev/shm"
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(mmap.PAGESIZE)
        mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
        if shutil.disk_usage(folder).free > mebibytes << 20:
            return folder
    return None


@contextlib.contextmanager
def _images(disks: Sequence[Disk]) -> Iterator[list[int]]:
    """Open files for the disks, which have no name any more: they can't be left behind."""
    with contextlib.ExitStack() as stack:
        folder = _disk_folder() if any(not disk.is_plain for disk in disks) else None
        images = []
        for disk in disks:
            path = Path(tempfile.mkstemp(prefix="lunr-vm-disk-", dir=folder)[1])
            images.append(stack.enter_context(path.open("r+b")).fileno())
            make_image(path, disk)
            path.unlink()
        yield images


def disk_folders() -> list[str]:
    """Where disks may be, the best first."""
    return [tempfile.gettempdir(), "/var/tmp", str(CACHE)]


def _disk_folder() -> str:
    """A folder in which a file can be told to be zeros.

    A tmpfs has no such thing. There the kernel would write the zeros, and a cleared disk take
    all the memory.

    Raises:
        CannotRun: there is none.
    """
    folders = disk_folders()
    for folder in folders:
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder) as file:
            zero = ["fallocate", "--zero-range", "--keep-size", "--length", "4096", file.name]
            if not subprocess.run(zero, stderr=subprocess.DEVNULL, check=False).returncode:
                return folder
    places = " or ".join(folders)
    raise CannotRun(f"disks need ext4 or XFS, and there is none at {places}: name one as TMPDIR")


def _disk_options(disks: Sequence[Disk], images: Sequence[int]) -> Iterator[str]:
    for number, (disk, image) in enumerate(zip(disks, images, strict=True)):
        # "d": no header of a copy-on-write file is looked for; "t": no discards, no zeros.
        yield f"ubd{number}{'t' if disk.is_plain else ''}d=/proc/self/fd/{image}"
