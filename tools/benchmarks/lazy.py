"""Volumes that fill while they are used, against the same work without that, as ratios.

usage: tools/bench lazy [--size MiB] [--rounds N] [--folder DIR]

The store is a real Swift on loopback, on this machine: it takes its share of the
same processors. Figures are medians of N rounds (5). Needs root and FUSE.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lunr.backup import keys
from lunr.backup.format.names import Kind, Ref
from lunr.backup.pipeline import Backup, save
from lunr.backup.repository import Repository
from lunr.backup.sources import FileSource
from lunr.backup.stores import open_store
from tools.services.loopback import read_env

TOP = Path(__file__).resolve().parents[2]
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
CHUNK = 4 * MIB
SPARSE = {"1 GiB": GIB, "100 GiB": 100 * GIB, "10 TiB": 10 * TIB}


class Swift:
    """The store, and what it takes to reach it."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "swift"
        self._tool("start")
        env = read_env(self._root / "env")
        self.options = {"auth_url": env["ST_AUTH"], "user": env["ST_USER"], "key": env["ST_KEY"]}
        self.store = open_store("swift:bench", "lazy", self.options)
        self.repository = Repository(self.store, keys.derive(keys.PUBLIC_MASTER, "lazy"))

    def _tool(self, word: str) -> None:
        subprocess.run(
            [TOP / "tools" / "swift", word, self._root], check=True, stdout=subprocess.DEVNULL
        )

    def wipe(self) -> None:
        self.store.close()
        self._tool("wipe")

    def chunks(self, backup_id: str) -> list[str]:
        """The names of the objects of a backup without patches."""
        root = self.repository.load_root(backup_id)
        return [
            entry.name(Kind.CHUNK)
            for chunks, ref in self.repository.segments_of(root)
            if ref is not None
            for entry in self.repository.load_segment(ref, len(chunks))
            if isinstance(entry, Ref)
        ]


class Volume:
    """A volume of a backup, served by its process."""

    def __init__(self, folder: Path, swift: Swift, backup_id: str, size: int, **task: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        point, self.target = self._folder / "mount", self._folder / "target"
        point.mkdir()
        with self.target.open("wb") as file:
            file.truncate(size)
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lunr.backup.image.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        given = {"target_is_zero": True, "fill": "never", **task}
        order = {
            "task": "volume",
            "store": {"url": "swift:bench", "options": swift.options},
            "key": None,
            "repository": "lazy",
            "backup_id": backup_id,
            "mountpoint": str(point),
            "target": str(self.target),
            "size_bytes": size,
            "map": str(self._folder / "map"),
            "live": str(self._folder / "live"),
            **given,
        }
        self.tell(json.dumps(order))
        self.wait_for("mounted")
        self.path = point / "volume"

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event:
                return found
        raise SystemExit(f"the worker ended without {event}")

    def close(self) -> None:
        self.tell("unmount")
        self._process.wait()
        shutil.rmtree(self._folder)


class Bench:
    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        self.folder, self.size, self.rounds = folder, size, rounds
        self.swift = Swift(folder)
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

    def median(self, measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(self.rounds))

    # --- what is measured ------------------------------------------------------------

    def first_byte(self) -> None:
        print("from the start of the process to the first byte read (s):")
        figures = []
        for name, size in SPARSE.items():
            self.save(f"sparse-{size}", size, {size // 2: CHUNK, size - CHUNK: CHUNK})

            def measure(size: int = size) -> float:
                with self.volume(f"sparse-{size}", size) as (volume, fd):
                    assert any(os.pread(fd, 4096, size // 2))
                    return time.monotonic() - volume.started

            figures.append(self.median(measure))
            print(f"  {name:<10}{figures[-1]:>8.3f}")
        print(f"  the longest is {max(figures) / min(figures):.2f}x the shortest (at most 1.5)")

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
        self.ratio("cold 4 KiB read", reads, "GET of its chunk", gets, "at most 1.5")

    def writes(self) -> None:
        absent: list[float] = []
        present: list[float] = []
        data = os.urandom(4096)
        with self.volume("full", self.size) as (_, fd):
            os.pread(fd, 4096, 0)
            for number in range(1, self.size // CHUNK):
                for unit in range(20):
                    at = number * CHUNK + unit * 8192
                    for times in (absent, present):
                        started = time.perf_counter()
                        os.pwrite(fd, data, at)
                        times.append(time.perf_counter() - started)
        self.ratio("4 KiB write, absent", absent, "present", present, "at most 1.5")

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
        self.rate("fill, to disk and synced", rates[0], "GET by 4 threads", rates[1], "0.8")

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
            still = any(os.lseek(fd, 0, os.SEEK_DATA) != 0 for _ in range(1))  # the volume answers
            assert not still
        self.rate("4 KiB reads while filling", busy, "idle", idle, "0.5", "/s")

    def filled(self) -> None:
        with self.volume("full", self.size) as (volume, early):
            volume.tell("fill eager")
            volume.wait_for("filled")
            late = os.open(volume.path, os.O_RDWR)
            plain = os.open(volume.target, os.O_RDWR)
            for title, work, unit in (
                ("4 KiB reads", self.random_reads, "/s"),
                ("4 KiB writes", self.random_writes, "/s"),
                ("1 MiB reads", self.sequential_reads, "MiB/s"),
            ):
                rates: dict[int, list[float]] = {early: [], late: [], plain: []}
                for _ in range(self.rounds):
                    for fd, figures in rates.items():
                        figures.append(work(fd, self.size))
                self.rate(f"{title}, FUSE", rates[early], "plain file", rates[plain], "-", unit)
                self.rate(f"{title}, passed", rates[late], "plain file", rates[plain], "0.9", unit)
            os.close(late)
            os.close(plain)

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

    def sequential_reads(self, fd: int, size: int) -> float:
        started = time.monotonic()
        for at in range(0, size, MIB):
            os.pread(fd, MIB, at)
        return size / MIB / (time.monotonic() - started)

    # --- the report ------------------------------------------------------------------

    def ratio(
        self, name: str, ours: list[float], other: str, theirs: list[float], goal: str
    ) -> None:
        mine, yours = statistics.median(ours), statistics.median(theirs)
        print(
            f"{name}: {mine * 1e3:.3f} ms, {other}: {yours * 1e3:.3f} ms, "
            f"{mine / yours:.2f}x ({goal})"
        )

    def rate(
        self,
        name: str,
        ours: list[float],
        other: str,
        theirs: list[float],
        goal: str,
        unit: str = "MiB/s",
    ) -> None:
        mine, yours = statistics.median(ours), statistics.median(theirs)
        print(
            f"{name}: {mine:.0f} {unit}, {other}: {yours:.0f} {unit}, "
            f"{mine / yours:.2f} (at least {goal})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="MiB of the backup that is filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), arguments.size * MIB, arguments.rounds)
        try:
            bench.save("full", bench.size, {0: bench.size})
            for part in (bench.first_byte, bench.cold_read, bench.writes, bench.fill):
                part()
            for part in (bench.foreground, bench.filled):
                part()
        finally:
            bench.swift.wipe()


if __name__ == "__main__":
    main()
