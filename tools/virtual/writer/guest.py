"""A guest that writes without end to two disks: Debian's kernel, emulated, and `init`."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.virtual.launch import CACHE
from tools.virtual.qemu import unpack_kernel
from tools.waiting import wait_until

KERNEL = CACHE / "kernel"
INIT = Path(__file__).with_name("init")
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")
AGENT = Path("/usr/sbin/qemu-ga")
SIZE = 48 << 20
#: Of the kernel: what it would do at its start that an emulated machine needs not is left out. What
#: tools/virtual/qemu.py says of no_timer_check is true here, too.
CMDLINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable acpi=off cryptomgr.notests nokaslr "
    "no_timer_check nowatchdog"
)
_READY = re.compile(r"ready at (\d+)\s*\n")


def make_initramfs(folder: Path) -> Path:
    """An archive with busybox, the kernel's modules for disks and ext4, and `init`."""
    root = folder / "initramfs"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy2(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
    shutil.copy2(INIT, root / "init")
    _add_agent(root)
    version = next((KERNEL / "lib" / "modules").iterdir()).name
    order: list[str] = []
    for module in MODULES:
        argv = ["/sbin/modprobe", "-d", str(KERNEL), "-S", version, "--show-depends", module]
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        for line in told.splitlines():
            path = Path(line.split()[1])
            if line.startswith("insmod") and path.name not in order:
                shutil.copy2(path, root / "modules")
                order.append(path.name)
    (root / "modules" / "order").write_text("\n".join(order))
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        cwd=root,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    archive = folder / "initramfs.cpio"
    archive.write_bytes(packed.stdout)
    return archive


def _add_agent(root: Path) -> None:
    """qemu-ga and the libraries that it needs, if it is installed here."""
    if not AGENT.exists():
        return
    told = subprocess.run(["ldd", str(AGENT)], check=True, capture_output=True, text=True).stdout
    for path in (AGENT, *(Path(word) for word in told.split() if word.startswith("/"))):
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


class Guest:
    """A running one with the disks a and b.

    Args:
        extra: more of QEMU's arguments.
        logs: where its console's text goes, and QEMU's, to be kept.
    """

    def __init__(
        self,
        initramfs: Path,
        a: Path,
        b: Path,
        extra: Sequence[str] = (),
        logs: Path | None = None,
    ) -> None:
        """Unpack the kernel beside `initramfs`, and prepare to start both."""
        self.a, self.b = a, b
        self._initramfs, self._extra = initramfs, extra
        self._kernel = unpack_kernel(initramfs.parent)
        self._sockets = Path(tempfile.mkdtemp(prefix="g"))
        self.qmp = self._sockets / "qmp"
        self.agent = self._sockets / "agent"
        self._console = (logs or self._sockets) / "console.log"
        self._errors = (logs or self._sockets) / "qemu.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, line: Sequence[str] | None = None) -> int:
        """Start it, by the command `line` if there is one, and wait until it writes.

        Returns:
            The counter that it found on its disks, 0 on new ones.
        """
        self._console.unlink(missing_ok=True)
        for path in self._sockets.iterdir():  # of one that was killed
            path.unlink()
        argv = [
            *(self._line() if line is None else line),
            *("-nodefaults", "-display", "none"),
            *("-kernel", str(self._kernel)),
            *("-initrd", str(self._initramfs)),
            *("-append", CMDLINE),
            *("-serial", f"file:{self._console}"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent"),
            *self._extra,
        ]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors)
        found = wait_until(
            lambda: _READY.search(self.said()), what="the guest writes", interval=0.1
        )
        assert found is not None
        return int(found[1])

    def _line(self) -> list[str]:
        line = [
            *("qemu-system-x86_64", "-name", "guest"),
            *("-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-m", "192"),
        ]
        for name, path in (("a", self.a), ("b", self.b)):
            kind = "qcow2" if path.suffix == ".qcow2" else "raw"
            line += [
                "-blockdev",
                f"driver={kind},node-name=node-{name},discard=unmap,"
                f"file.driver=file,file.filename={path},file.discard=unmap",
                *("-device", f"virtio-blk-pci,drive=node-{name},id={name}"),
            ]
        return line

    def said(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, f"QEMU ended: {self._errors.read_text()}"
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def await_writes(self) -> None:
        """Return when it has gone on writing."""
        before = self._rounds()
        wait_until(lambda: self._rounds() > before + 1, what="the guest writes", interval=0.05)

    def _rounds(self) -> int:
        return self.said().count("round ")

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self._sockets)


def make_disk(path: Path) -> Path:
    """A disk with an empty ext4."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["/sbin/mkfs.ext4", "-q", str(raw)], check=True)
    if path.suffix == ".qcow2":
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(path)], check=True)
    return path


def check(a: Path, b: Path) -> int:
    """Whether two raw disks are of one instant; the counter of a.

    Raises:
        AssertionError: they are not, or a file system is not whole after its journal.
    """
    for disk in (a, b):
        replay = ["/sbin/e2fsck", "-E", "journal_only", "-p", str(disk)]
        subprocess.run(replay, check=True, capture_output=True)
        done = subprocess.run(["/sbin/e2fsck", "-fn", str(disk)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    # Nothing is in it, or it is not there, before the first round has come so far.
    counters = [int(_read(disk, "counter") or 0) for disk in (a, b)]
    assert counters[0] - counters[1] in (0, 1), counters
    sums = [name for name in _names(b) if name.startswith("sum.")]
    compared = 0
    for name in sums:
        number = int(name.removeprefix("sum."))
        told = _read(b, name).split()
        data = _read(a, f"data.{number}")
        if number <= counters[1] and number > counters[0] - 20 and told:
            assert hashlib.sha1(data).hexdigest() == told[0].decode(), number
            compared += 1
    assert compared >= min(5, counters[1])
    return counters[0]


def _read(disk: Path, name: str) -> bytes:
    argv = ["/sbin/debugfs", "-R", f"cat /{name}", str(disk)]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def _names(disk: Path) -> list[str]:
    argv = ["/sbin/debugfs", "-R", "ls -p /", str(disk)]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [line.split("/")[5] for line in told.splitlines() if line.count("/") > 5]
