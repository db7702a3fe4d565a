"""A Debian that boots from a disk which QEMU reaches by itself, as over iSCSI."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.virtual.launch import CACHE, TOP
from tools.virtual.qemu import CPU, KERNEL_OPTIONS, clock

#: What its disk begins with; the rest of the disk is not used.
IMAGE = CACHE / "debian.ext4"
_PROMPT = "login:"


class BootFailed(Exception):
    """It came to no login; with the end of what it said."""


class Guest:
    """A Debian under way, from :func:`booting`."""

    def __init__(self, process: subprocess.Popen[bytes], console: Path) -> None:
        self._process = process
        self._console = console
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was switched on."""
        return time.monotonic() - self._begun

    def said(self) -> list[str]:
        """The lines on its console."""
        return self._console.read_text(errors="replace").splitlines()

    def wait_for_login(
        self, tick: Callable[[], None] = lambda: None, seconds: float = 180.0
    ) -> float:
        """Return the seconds from switching it on until it asks who logs in.

        Args:
            tick: called some twenty times a second meanwhile.
            seconds: the most that it may take.

        Raises:
            BootFailed: it ended, or took longer.
        """
        while not any(_PROMPT in line for line in reversed(self.said())):
            if self._process.poll() is not None or self.seconds > seconds:
                raise BootFailed("\n".join(self.said()[-20:]))
            tick()
            time.sleep(0.05)
        return self.seconds


def make() -> None:
    """Make `IMAGE` and what boots it, unless they are there.

    Raises:
        BootFailed: that can't be; the reason is on standard error.
    """
    for argv in (["tools/setup", "--vm"], ["tools/virtual/debian/make"]):
        if subprocess.run(argv, cwd=TOP, check=False).returncode:
            raise BootFailed(f"{argv[0]} failed, see above")


@contextlib.contextmanager
def booting(image: str, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Guest]:
    """Switch one on; it is switched off, as by a power cut, at the end.

    Args:
        image: its disk, as qemu's tools take it after ``--image-opts``.
        folder: where its console's text goes.
        arguments: more of QEMU's, as the secret of the disk.
    """
    version = next((CACHE / "kernel" / "lib" / "modules").iterdir()).name
    console = folder / "console"
    console.touch()
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-accel", "tcg", "-machine", "q35", "-cpu", CPU, "-smp", "1", "-m", "512"),
        *("-kernel", str(CACHE / "kernel" / "boot" / f"vmlinuz-{version}")),
        *("-initrd", str(CACHE / "debian.cpio")),
        # The terminal, of which its first process is told so, has no colours.
        *("-append", f"{KERNEL_OPTIONS} {clock()} systemd.show_status=1 TERM=dumb"),
        *("-serial", f"file:{console}"),
        *(*arguments, "-drive", f"if=none,id=root,{image}"),
        *("-device", "virtio-blk-pci,drive=root"),
    ]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield Guest(process, console)
    finally:
        process.kill()
        process.wait()
        console.unlink()
