"""A QEMU whose processor halts, to back up live."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.data.old_content import Content
from tools.waiting import wait_until

MIB = 1 << 20
#: 64 KiB of ROM: forbid interrupts and halt, at the processor's first address.
_HALT = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12


class Machine:
    """It runs, and has two raw disks of 8 MiB; `content` is what they hold, by their names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.monitor = folder / "qmp"
        self._own = folder / "own"
        self.content = {"root": Content(), "data": Content()}
        (folder / "halt").write_bytes(_HALT)
        argv = ["qemu-system-x86_64", "-name", "vm1", "-machine", "q35", "-accel", "tcg", "-m", "8"]
        argv += ["-nodefaults", "-display", "none", "-bios", str(folder / "halt")]
        for place in (self.monitor, self._own):
            argv += ["-qmp", f"unix:{place},server=on,wait=off"]
        for name, content in self.content.items():
            with (folder / name).open("wb") as file:
                file.truncate(8 * MIB)
                file.seek(MIB)
                file.write(content.change(name, MIB))
            argv += ["-blockdev", f"driver=raw,node-name=node-{name},file.driver=file"]
            argv[-1] += f",file.filename={folder / name}"
            argv += ["-device", f"virtio-blk-pci,drive=node-{name},id={name}"]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        wait_until(self._own.exists, what="QEMU's monitor")

    def write(self, disk: str, place: int, value: int) -> None:
        """Have the guest write a block full of one value."""
        line = f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "write -P {value} {place} 4k"'
        said = self._execute("human-monitor-command", {"command-line": line})
        assert "rror" not in said, said
        self.content[disk].put(place, bytes([value]) * 4096)

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._own))
            with monitor.makefile("rw") as lines:
                orders = (
                    {"execute": "qmp_capabilities"},
                    {"execute": command, "arguments": arguments},
                )
                for order in orders:
                    lines.write(json.dumps(order) + "\n")
                    lines.flush()
                    answer: dict[str, Any] = {}
                    while "return" not in answer:  # but a greeting, or an event
                        answer = json.loads(lines.readline())
                        assert "error" not in answer, answer
                return answer["return"]

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
