"""Volumes that fill while they are used, against the same work without that, as ratios.

usage: tools/bench lazy [--size MiB] [--rounds N] [--folder DIR]

The store is a real Swift on loopback, on this machine: it takes its share of the
same processors. Figures are medians of N rounds (5). Needs root and FUSE; tgtd, qemu-io
and qemu-img for what goes over iSCSI; and what tools/setup --vm brings for the machine
that boots, which it calls.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from tools.benchmarks.filling import libraries, wire
from tools.benchmarks.filling.served import Swift, Volume
from tools.benchmarks.filling.table import Table
from tools.virtual.debian import guest

MIB = 1 << 20
CHUNK = 4 * MIB
#: Bytes a second of the fill beside which a machine boots: so it lasts longer than the boot.
BOOT_LIMIT = 4 * MIB
#: Rounds of that at most.
BOOTS = 3


class Bench:
    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        self.folder, self.size, self.rounds = folder, size, rounds
        self.swift = Swift(folder)
        self.table = Table()
        self.rng = random.Random(1)

    def save(self, backup_id: str, size: int, pieces: dict[int, int]) -> None:
        """A backup of `size` bytes, zeros but for random bytes: offset to length."""
        source = self.folder / "source"
        with source.open("wb") as file:
            file.truncate(size)
            for offset, length in pieces.items():
                for at in range(offset, offset + length, MIB):
                    os.pwrite(file.fileno(), os.urandom(MIB), at)
        with FileSource(source) as opened:
            save(self.swift.repository, opened, Backup(backup_id, "v", "2026-11-23T00:00:00Z"))
        source.unlink()

    @contextlib.contextmanager
    def volume(self, backup_id: str, size: int, **task: Any) -> Iterator[tuple[Volume, int]]:
        volume = Volume(self.folder, self.swift, backup_id, size, **task)
        fd = os.open(volume.path, os.O_RDWR)
        try:
            yield volume, fd
        finally:
            os.close(fd)
            volume.close()

    # --- what is measured ------------------------------------------------------------

    def cold_read(self) -> None:
        names = self.swift.chunks("full")
        gets: list[float] = []
        reads: list[float] = []
        with self.volume("full", self.size) as (_, fd):
            os.pread(fd, 4096, 0)  # the segment is there then, and the login
            # Backwards, so that nothing is read ahead.
            for number in reversed(range(1, min(40, self.size // CHUNK))):
                started = time.monotonic()
                self.swift.store.get(names[number])
                gets.append(time.monotonic() - started)
                started = time.monotonic()
                os.pread(fd, 4096, number * CHUNK + 8192)
                reads.append(time.monotonic() - started)
        self.table.time("cold 4 KiB read", reads, "GET of its chunk", gets, 1.5)

    def writes(self) -> None:
        absent, present = [], []
        with self.volume("full", self.size) as (_, fd):
            os.pread(fd, 4096, 0)
            for first, again in self.first_and_again(fd):
                absent.append(first)
                present.append(again)
        self.table.time("4 KiB write, absent", absent, "the same, present", present, 1.5)
        # What of that is the local file system's, which has no page and no room there yet.
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(self.size)
            pairs = list(self.first_and_again(file.fileno()))
        hole, there = ([pair[at] for pair in pairs] for at in (0, 1))
        self.table.time("… of a plain sparse file, hole", hole, "the same, again", there, None)

    def first_and_again(self, fd: int) -> Iterator[tuple[float, float]]:
        """Seconds that writes of 4 KiB take to where nothing was written, and there again."""
        data = os.urandom(4096)
        for number in range(1, self.size // CHUNK):
            for unit in range(20):
                at = number * CHUNK + unit * 8192
                started = time.perf_counter()
                os.pwrite(fd, data, at)
                between = time.perf_counter()
                os.pwrite(fd, data, at)
                yield between - started, time.perf_counter() - between

    def fill(self) -> None:
        names = self.swift.chunks("full")

        def get_all() -> float:
            todo = iter(names)
            lock = threading.Lock()

            def work() -> None:
                while True:
                    with lock:
                        name = next(todo, None)
                    if name is None:
                        return
                    self.swift.store.get(name)

            threads = [threading.Thread(target=work) for _ in range(4)]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return self.size / MIB / (time.monotonic() - started)

        def fill() -> float:
            with self.volume("full", self.size) as (volume, _):
                started = time.monotonic()
                volume.tell("fill eager")
                volume.wait_for("filled")
                return self.size / MIB / (time.monotonic() - started)

        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.rounds):
            rates[0].append(fill())
            rates[1].append(get_all())
        self.table.rate(
            *("fill, to disk and synced", rates[0], "GET by 4 threads", rates[1], 0.8, "MiB/s")
        )

    def foreground(self) -> None:
        idle, busy = [], []
        with self.volume("full", self.size) as (volume, fd):
            here = self.size // 4
            for at in range(0, here, MIB):
                os.pread(fd, MIB, at)
            for _ in range(self.rounds):
                idle.append(self.random_reads(fd, here))
            volume.tell("fill eager")
            for _ in range(self.rounds):
                busy.append(self.random_reads(fd, here))
            still_fills = volume.is_filling()
        if not still_fills:
            raise SystemExit("it was full before all was measured: give it a larger --size")
        self.table.rate("4 KiB reads while filling", busy, "when idle", idle, 0.5, "/s")

    def filled(self) -> None:
        """A volume that is full: attached before it was, attached afterwards, and the plain file.

        The present attachment goes on through the process as long as it is busy; at its first
        quiet moment it is moved to the plain file. A new open is passed through by the kernel,
        the next attachment is the plain file.
        """
        with self.volume("full", self.size) as (volume, early), contextlib.ExitStack() as held:
            both = {"busy": volume.path, "moved": volume.path}
            present = held.enter_context(wire.exported(self.folder, both))
            volume.tell("fill eager")
            volume.wait_for("filled")
            present.move("moved", volume.target)
            files = {"late": volume.path, "plain": volume.target}
            urls = present.urls | held.enter_context(wire.exported(self.folder, files)).urls
            for title, size, options in (
                ("4 KiB reads", 4096, ()),
                ("4 KiB writes", 4096, ("-w",)),
                ("256 KiB reads", 256 << 10, ()),
            ):
                count = min(20_000, self.size // size)
                rates: dict[str, list[float]] = {name: [] for name in urls}
                for _ in range(self.rounds):
                    for name, url in urls.items():
                        rates[name].append(wire.rate(url, count, size, options))
                plain = rates["plain"]
                for name, shown in (
                    ("busy", "present attachment, busy"),
                    ("moved", "present attachment, after a quiet moment"),
                    ("late", "passed through"),
                ):
                    given = (f"iSCSI {title}, {shown}", rates[name], "the plain file", plain)
                    self.table.rate(*given, 0.9, "/s")
            late = held.enter_context(_opened(volume.path))
            plain_fd = held.enter_context(_opened(volume.target))
            for title, work in (("reads", self.random_reads), ("writes", self.random_writes)):
                found: dict[int, list[float]] = {early: [], late: [], plain_fd: []}
                for _ in range(self.rounds):
                    for fd, figures in found.items():
                        figures.append(work(fd, self.size))
                for fd, shown in ((early, "FUSE"), (late, "passed through")):
                    what = f"local 4 KiB {title}, {shown}"
                    self.table.rate(what, found[fd], "the plain file", found[plain_fd], None, "/s")

    def boot(self) -> None:
        """A machine with Debian, from switching it on to its login.

        Its disk is a volume that has just begun to be filled, or a local file with the
        same bytes. Both are fresh each time, and through tgtd.
        """
        size = guest.IMAGE.stat().st_size
        with FileSource(guest.IMAGE) as opened:
            save(self.swift.repository, opened, Backup("debian", "v", "2026-11-23T00:00:00Z"))
        plain = self.folder / "debian"
        found: dict[str, list[float]] = {"filling": [], "plain": []}
        for _ in range(min(self.rounds, BOOTS)):
            task = {"fill": "eager", "limit": BOOT_LIMIT}
            with self.volume("debian", size, **task) as (volume, _):
                found["filling"].append(self.boot_from(volume.path))
                if not volume.is_filling():
                    raise SystemExit("it was full before Debian had booted")
            subprocess.run(["cp", "--sparse=always", guest.IMAGE, plain], check=True)
            found["plain"].append(self.boot_from(plain))
        self.table.time("boot of Debian", found["filling"], "the plain file", found["plain"], 1.5)

    def boot_from(self, path: Path) -> float:
        """Seconds until a login, with the disk `path`."""
        with (
            wire.exported(self.folder, {"root": path}) as exported,
            guest.booting(wire.image(exported.urls["root"]), self.folder) as debian,
        ):
            return debian.wait_for_login()

    def random_reads(self, fd: int, size: int, seconds: float = 0.7) -> float:
        return self.timed(lambda at: os.pread(fd, 4096, at), size, seconds)

    def random_writes(self, fd: int, size: int, seconds: float = 0.7) -> float:
        data = os.urandom(4096)
        return self.timed(lambda at: os.pwrite(fd, data, at), size, seconds)

    def timed(self, work: Callable[[int], object], size: int, seconds: float) -> float:
        count, units = 0, size // 4096
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for _ in range(50):
                work(self.rng.randrange(units) * 4096)
            count += 50
        return count / (time.monotonic() - started)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="MiB of the backup that is filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    guest.make()
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), arguments.size * MIB, arguments.rounds)
        try:
            store = {name: bench.swift.env[name] for name in ("ST_AUTH", "ST_USER", "ST_KEY")}
            wire.first_byte(Path(folder), store, bench.table, arguments.rounds)
            bench.save("full", bench.size, {0: bench.size})
            for part in (bench.cold_read, bench.writes, bench.fill, bench.foreground, bench.filled):
                part()
            bench.boot()
            libraries.compare(Path(folder), bench.table, arguments.rounds)
            bench.table.print()
            load = " ".join(f"{figure:.1f}" for figure in os.getloadavg())
            print(f"load of this machine, over 1, 5 and 15 minutes: {load}")
        finally:
            bench.swift.wipe()


if __name__ == "__main__":
    main()
