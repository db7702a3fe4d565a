"""Real QEMUs to back up. The guest does nothing: its processor halts at the first instruction.

What it would write is written by QEMU's own `qemu-io`, through the same device. So a
machine starts in a twentieth of a second, and a test knows every byte.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lunr.live import errors
from lunr.live.qemu.qmp import Monitor
from lunr.storage.targets.base import Export
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.waiting import wait_until
from tests.system.storage import iscsi

MIB = 1 << 20

#: 64 KiB of ROM: forbid interrupts and halt, at the processor's first address.
_HALT = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12


class Disk:
    """A disk, and what should be on it."""

    def __init__(self, name: str, path: Path, size: int, kind: str, bus: str) -> None:
        need_qemu()
        self.name, self.path, self.kind, self.bus = name, path, kind, bus
        self.content = bytearray(size)
        self.create()

    def create(self) -> None:
        """An empty image."""
        size = str(len(self.content))
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", self.kind, str(self.path), size], check=True
        )

    @property
    def qdev(self) -> str:
        backend = "/virtio-backend" if self.bus == "virtio" else ""
        return f"/machine/peripheral/{self.name}{backend}"

    def options(self) -> list[str]:
        node = f"node-{self.name}"
        file = "driver=file,discard=unmap"
        blockdev = f"driver={self.kind},node-name={node},discard=unmap,file.filename={self.path}"
        blockdev += "".join(f",file.{option}" for option in file.split(","))
        device = {
            "virtio": f"virtio-blk-pci,drive={node},id={self.name}",
            "scsi": f"scsi-hd,drive={node},id={self.name}",
        }
        return ["-blockdev", blockdev, "-device", device[self.bus]]


class Remote(Disk):
    """A raw disk that QEMU reaches by iSCSI."""

    def __init__(self, name: str, path: Path, size: int, target: TgtTarget, portal: str) -> None:
        super().__init__(name, path, size, "raw", "virtio")
        self._portal = portal
        self._export = Export(
            volume_id=name,
            path=path,
            iqn=f"iqn.2026-11.io.lunr:{name}",
            lun=1,
            username=name,
            password="secretsecret",
            initiator=iscsi.INITIATOR,
            ip=None,
            serial=name,
        )
        self._target = target
        self.serve()

    def serve(self) -> None:
        """Have the target export it (again)."""
        self._target.ensure(self._export)

    def options(self) -> list[str]:
        export = self._export
        file = (
            f"file.driver=iscsi,file.transport=tcp,file.portal={self._portal},"
            f"file.target={export.iqn},file.lun=1,file.user={export.username},"
            f"file.password-secret=chap,file.initiator-name={iscsi.INITIATOR}"
        )
        node = f"driver=raw,node-name=node-{self.name},discard=unmap,{file}"
        device = f"virtio-blk-pci,drive=node-{self.name},id={self.name}"
        secret = f"secret,id=chap,data={export.password}"
        return ["-object", secret, "-blockdev", node, "-device", device]


class Machine:
    """A QEMU with a second monitor, which plays the guest."""

    def __init__(self, folder: Path, disks: list[Disk], *extra: str, name: str = "vm") -> None:
        self.folder, self.disks, self.extra, self.name = folder, disks, extra, name
        # Short: the path of a unix socket has at most 107 bytes.
        self._sockets = Path(tempfile.mkdtemp(prefix="q"))
        self.qmp = self._sockets / "qmp"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, line: Sequence[str] | None = None) -> None:
        """Start it, by the command `line` if there is one."""
        rom = self.folder / "halt.bin"
        rom.write_bytes(_HALT)
        argv = [
            *(self._line() if line is None else line),
            *("-nodefaults", "-display", "none", "-bios", str(rom)),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{self._sockets}/guest,server=on,wait=off"),
        ]
        for socket in self._sockets.iterdir():  # of one that was killed
            socket.unlink()
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        wait_until(self._is_up, what="QEMU's sockets")

    def _line(self) -> list[str]:
        line = [
            *("qemu-system-x86_64", "-name", self.name, "-machine", "q35", "-accel", "tcg"),
            *("-m", "8", "-device", "virtio-scsi-pci,id=scsi"),
        ]
        for disk in self.disks:
            line += disk.options()
        return [*line, *self.extra]

    def connect(self) -> None:
        self.guest = Monitor.open(self._sockets / "guest")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "QEMU ended"
        try:
            self.connect()
        except errors.MonitorUnavailable:  # not there, or does not listen yet
            return False
        return True

    def io(self, disk: Disk, command: str) -> None:
        line = f'qemu-io -d {disk.qdev} "{command}"'
        said = self.guest.execute("human-monitor-command", {"command-line": line})
        assert "rror" not in said and "invalid" not in said, said

    def write(self, disk: Disk, offset: int, length: int, value: int) -> None:
        self.io(disk, f"write -P {value} {offset} {length}")
        disk.content[offset : offset + length] = bytes([value]) * length

    def discard(self, disk: Disk, offset: int, length: int) -> None:
        self.io(disk, f"write -z -u {offset} {length}")
        disk.content[offset : offset + length] = bytes(length)

    def write_some(self, draw: random.Random, count: int = 8) -> None:
        for _ in range(count):
            disk = draw.choice(self.disks)
            length = 512 * draw.choice([1, 8, 64, 128, 1000])
            offset = 512 * draw.randrange((len(disk.content) - length) // 512)
            if draw.random() < 0.2:
                self.discard(disk, offset, length)
            else:
                self.write(disk, offset, length, draw.randrange(1, 256))

    def contents(self) -> dict[str, bytes]:
        return {disk.name: bytes(disk.content) for disk in self.disks}

    def status(self) -> str:
        return str(self.guest.execute("query-status")["status"])

    def bitmaps(self) -> dict[str, set[str]]:
        """The bitmaps of every disk, by its name."""
        return {
            _name(block): {bitmap["name"] for bitmap in block["inserted"].get("dirty-bitmaps", ())}
            for block in self.guest.execute("query-block")
        }

    def nodes(self) -> set[str]:
        return {node["node-name"] for node in self.guest.execute("query-named-block-nodes")}

    def assert_untouched(self) -> None:
        """It runs, and has nothing of ours but bitmaps."""
        assert self.status() == "running"
        assert not [node for node in self.nodes() if node.startswith("lunr")]
        assert self.guest.execute("query-block-exports") == []
        assert self.guest.execute("query-fdsets") == []
        for block in self.guest.execute("query-block"):
            assert block["inserted"]["node-name"] == f"node-{_name(block)}"
        server = self.guest.execute("nbd-server-start", _somewhere(self._sockets / "own"))
        assert server == {}  # so none was running
        self.guest.execute("nbd-server-stop")

    def kill(self) -> None:
        assert self.process is not None
        self.guest.close()
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self._sockets)


def _name(block: dict[str, Any]) -> str:
    return str(block["qdev"].removeprefix("/machine/peripheral/").split("/")[0])


def _somewhere(path: Path) -> dict[str, Any]:
    return {"addr": {"type": "unix", "data": {"path": str(path)}}}


def need_qemu() -> None:
    """Skip the test where there is no QEMU."""
    for program in ("qemu-system-x86_64", "qemu-img"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (tools/setup --vm)")
