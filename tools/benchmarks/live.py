"""What a live backup costs: stall, bytes read and stored, rate of reading, the guest's fsync.

Real QEMUs. For bytes and rates the guest's processor halts, and QEMU writes in its stead
through the same device; for stalls a guest with Debian's kernel writes and syncs all the
time (tools/setup --vm). Bytes are compared with what was written, the rate with nbdcopy
(Debian's libnbd-bin) to /dev/null from the same server.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import queue
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lunr.backup.keys.derive import PUBLIC_MASTER, derive
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.common import units
from lunr.common.units import KIB, MIB
from lunr.live.backup import source
from lunr.live.backup.backup import Options, backup
from lunr.live.backup.groups import Group
from lunr.live.qemu import nbd
from lunr.live.qemu.qmp import Monitor

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the machines that the tests have

from tests.system.live.machines import Disk, Machine
from tools.benchmarks.living import latency
from tools.virtual.writer import guest as guests
from tools.virtual.writer.guest import Guest
from tools.waiting import wait_until

PARTS = ("bytes", "rate", "stalls", "latency")


def opened(folder: Path) -> Repository:
    """An empty repository in `folder`."""
    return Repository(open_store(f"files:{folder}/store", "bench"), derive(PUBLIC_MASTER, "bench"))


def save(repository: Repository, machine: Machine | Guest, scratch: Path) -> Group:
    """One backup of `machine`."""
    with Monitor.open(machine.qmp) as monitor:
        return backup(repository, monitor, Options(scratch=scratch))


def bytes_of_increments(folder: Path, size: int, console: Console) -> None:
    """Dirty 1 % in several ways, and see what is read and stored."""
    disk = Disk("disk", folder / "disk.raw", size, "raw", "virtio")
    machine = Machine(folder, [disk])
    repository = opened(folder)
    draw = random.Random(1)
    noise = folder / "noise"  # what does not compress, so that bytes are bytes
    noise.write_bytes(draw.randbytes(MIB))
    table = Table(
        "1 % written as", "written", "read", "stored", "read ÷ written", "stored ÷ written"
    )
    try:
        for at in range(0, size, MIB):
            machine.io(disk, f"write -s {noise} {at} {MIB}")
        save(repository, machine, folder)
        for title, length in (
            ("1 MiB", MIB),
            ("64 KiB", 64 * KIB),
            ("32 KiB", 32 * KIB),
            ("4 KiB", 4 * KIB),
        ):
            count = max(1, size // 100 // length)
            noise.write_bytes(draw.randbytes(length))
            for place in draw.sample(range(size // length), count):
                machine.io(disk, f"write -s {noise} {place * length} {length}")
            (member,) = save(repository, machine, folder).members
            written = count * length
            table.add_row(
                f"{count} x {title}, at random",
                units.human(written),
                units.human(member.bytes_read),
                units.human(member.bytes_stored),
                f"{member.bytes_read / written:.2f}",
                f"{member.bytes_stored / written:.2f}",
            )
    finally:
        machine.end()
    console.print(table)


def rate(folder: Path, size: int, console: Console) -> None:
    """Read a server's whole disk as a backup does, and with nbdcopy."""
    image, path = folder / "image.raw", folder / "nbd"
    with image.open("wb") as file:
        for _ in range(size // MIB):
            file.write(random.Random(2).randbytes(MIB))
    argv = [
        "qemu-nbd",
        "-r",
        "-t",
        "-f",
        "raw",
        "-e",
        "16",
        "-x",
        "disk",
        "-k",
        str(path),
        str(image),
    ]
    server = subprocess.Popen(argv)
    table = Table("read by", "MiB/s, best of 3")
    try:
        wait_until(path.exists, "qemu-nbd")
        ours = best(lambda: _read_all(path), size)
        table.add_row("lunr, 4 connections in 64 KiB", f"{ours:.0f}")
        if shutil.which("nbdcopy"):
            uri = f"nbd+unix:///disk?socket={path}"
            command = ["nbdcopy", uri, "null:"]
            theirs = best(lambda: subprocess.run(command, check=True), size)
            table.add_row("nbdcopy", f"{theirs:.0f}")
            table.add_row("lunr ÷ nbdcopy", f"{ours / theirs:.2f}")
    finally:
        server.terminate()
        server.wait()
    console.print(table)


def _read_all(path: Path) -> None:
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for sock in sockets:
        sock.connect(str(path))
    connections = source.negotiate("disk", sockets, "disk", nbd.ALLOCATION)
    found = source.NbdSource("disk", connections)
    starts = queue.SimpleQueue[int]()
    for start in range(0, found.size, 4 * MIB):
        starts.put(start)

    def work() -> None:
        buffer = mmap.mmap(-1, 4 * MIB)
        with contextlib.suppress(queue.Empty):
            while True:
                at = starts.get_nowait()
                found.read(buffer, at, min(4 * MIB, found.size - at))

    threads = [threading.Thread(target=work) for _ in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()


def best(work: Callable[[], object], size: int) -> float:
    """MiB a second of the quickest of three."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        work()
        times.append(time.monotonic() - began)
    return size / MIB / min(times)


def stalls(folder: Path, cuts: int, console: Console) -> None:
    """How long a guest that writes stands still at each cut."""
    if not guests.KERNEL.exists():
        console.print("no stalls: Debian's kernel is not there (tools/setup --vm)")
        return
    a, b = (guests.make_disk(folder / name) for name in ("a.raw", "b.qcow2"))
    guest = Guest(guests.make_initramfs(folder), a, b)
    repository = opened(folder / "guest")
    try:
        guest.start()
        times = [1000 * save(repository, guest, folder).stall_seconds for _ in range(cuts)]
    finally:
        guest.end()
    table = Table("cuts of 2 disks under load", "median", "most")
    table.add_row(str(cuts), f"{statistics.median(times):.1f} ms", f"{max(times):.1f} ms")
    console.print(table)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of the disk")
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="draw the guest's fsync, as SVG")
    parser.add_argument("--only", choices=PARTS, help="one part only")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lunr-bench-") as name:
        folder, size = Path(name), options.size * MIB
        parts: dict[str, Callable[[], None]] = {
            "bytes": lambda: bytes_of_increments(folder, size, console),
            "rate": lambda: rate(folder, size, console),
            "stalls": lambda: stalls(folder, options.cuts, console),
            "latency": lambda: latency.measure(folder / "latency", options.plot, console),
        }
        for part in PARTS if options.only is None else [options.only]:
            parts[part]()


if __name__ == "__main__":
    main()
