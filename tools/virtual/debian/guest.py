"""A Debian that boots from a disk which QEMU reaches by itself, as over iSCSI."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.virtual.launch import CACHE, TOP
from tools.virtual.qemu import CPU, KERNEL_OPTIONS, clock, unpack_kernel
from tools.waiting import PATIENCE

#: What makes its kernel and its disk, unless they are there.
MAKE = [[str(TOP / "tools/setup"), "--vm"], [str(TOP / "tools/virtual/debian/make")]]
#: What its disk begins with; the rest of the disk is not used.
IMAGE = CACHE / "debian.ext4"
_PROMPT = "login:"
#: A kernel need not test what an emulator does. systemd would give up a service, or the device of a
#: terminal, that took 90 s; a busy machine is no reason, and who asks for a login needs no device.
_OPTIONS = (
    "acpi=off cryptomgr.notests systemd.show_status=1 systemd.default_timeout_start_sec=3600 "
    "systemd.mask=serial-getty@ttyS0.service systemd.wants=console-getty.service"
)
#: What a terminal takes for commands, as to erase a line.
_ESCAPE = re.compile(r"\x1b(?:\[[\d;?]*[A-Za-z]|[A-Z])")


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
        return _ESCAPE.sub("", self._console.read_text(errors="replace")).splitlines()

    def wait_for_login(self, tick: Callable[[], None] = lambda: None) -> float:
        """Return the seconds from switching it on until it asks who logs in.

        Args:
            tick: called some twenty times a second meanwhile.

        Raises:
            BootFailed: it ended, or took longer than `PATIENCE`.
        """
        while not any(_PROMPT in line for line in reversed(self.said())):
            if self._process.poll() is not None or self.seconds > PATIENCE:
                said = "\n".join(self.said()[-20:])
                raise BootFailed(f"it did not ask who logs in; it said:\n{said}")
            tick()
            time.sleep(0.05)
        return self.seconds


def make() -> None:
    """Do what `MAKE` says.

    Raises:
        BootFailed: that can't be; the reason is on standard error.
    """
    for command in MAKE:
        if subprocess.run(command, check=False).returncode:
            raise BootFailed(f"{command[0]} failed, see above")


@contextlib.contextmanager
def booting(image: str, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Guest]:
    """Switch one on; it is switched off, as by a power cut, at the end.

    Args:
        image: its disk, as qemu's tools take it after ``--image-opts``.
        folder: where its console's text goes.
        arguments: more of QEMU's, as the secret of the disk.
    """
    console = folder / "console.log"
    console.write_bytes(b"")
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-accel", "tcg", "-machine", "q35", "-cpu", CPU, "-smp", "1", "-m", "512"),
        *("-kernel", str(unpack_kernel(folder))),
        *("-initrd", str(CACHE / "debian.cpio")),
        # The terminal, of which its first process is told so, has no colours.
        *("-append", f"{KERNEL_OPTIONS} {clock()} {_OPTIONS} TERM=dumb"),
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
