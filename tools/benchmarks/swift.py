"""lunr's save and restore beside plain swiftclient threads, on the same real Swift in one run.

usage: tools/bench swift [--size MiB] [--rounds N] [--threads N] [--folder DIR]

A Swift of one node is started (tools/swift); it shares the machine's cores with its clients.
The plain threads read a file and put its pieces as objects of 4 MiB, as many as lunr's backup has,
each with its MD5, which Swift checks; and get them, and write them to a file. They do nothing
else: they neither check what they get nor wait until it is on the disk. lunr reads the volume,
hashes it, compresses what shrinks, encrypts, and stores that; and the same back, checked, into a
file, until that is on the disk. Both ask for as many objects at once. They take turns to be
first, in N rounds (5) after one that is not counted; rates and "lunr is" are the medians of the
rounds. The data are random, and once more text-like: words of a small vocabulary, of which lunr
sends less.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import swiftclient

from lunr.backup.keys import derive
from lunr.backup.read.restore import restore
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores import open_store

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.services.loopback import read_env
from tools.services.swift import Cluster

MIB = 1 << 20
CHUNK = 4 * MIB
#: Seconds of rest before each work: Swift cleans up and the disk writes what came before.
_SETTLE = 2.0
WORKS = ("put", "get")


def random_data(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def text_data(path: Path, size: int) -> None:
    """Lines of words, as a log or a source tree has them."""
    chance = random.Random(1)
    words = [chance.randbytes(chance.randrange(1, 6)).hex().encode() for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with path.open("wb") as file:
        for _ in range(size // MIB):
            text = b" ".join(chance.choices(words, weights, k=MIB // 4))
            file.write(text[:MIB].ljust(MIB, b"\n"))


class Plain:
    """Threads of swiftclient, each with a connection of its own."""

    def __init__(self, access: dict[str, str], threads: int, source: Path, out: Path) -> None:
        self._access = access
        self._threads = threads
        self._source = source
        self._out = out
        self._count = source.stat().st_size // CHUNK

    def _connect(self) -> swiftclient.Connection:
        return swiftclient.Connection(
            authurl=self._access["ST_AUTH"],
            user=self._access["ST_USER"],
            key=self._access["ST_KEY"],
            retries=0,
        )

    def _each(self, work: Callable[[swiftclient.Connection, int], None]) -> float:
        def run(first: int) -> None:
            connection = self._connect()
            for number in range(first, self._count, self._threads):
                work(connection, number)
            connection.close()

        start = time.monotonic()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(run, range(self._threads)))
        return time.monotonic() - start

    def put(self, container: str) -> float:
        self._connect().put_container(container)
        with self._source.open("rb") as file:
            fd = file.fileno()

            def work(connection: swiftclient.Connection, number: int) -> None:
                data = os.pread(fd, CHUNK, number * CHUNK)
                etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if connection.put_object(container, f"{number:08}", data, etag=etag) != etag:
                    raise SystemExit("an object did not arrive whole")

            return self._each(work)

    def get(self, container: str) -> float:
        with self._out.open("wb") as file:
            fd = file.fileno()

            def work(connection: swiftclient.Connection, number: int) -> None:
                os.pwrite(fd, connection.get_object(container, f"{number:08}")[1], number * CHUNK)

            return self._each(work)


class Lunr:
    """The engine, in this process like the plain threads."""

    def __init__(self, access: dict[str, str], threads: int, source: Path, out: Path) -> None:
        self._options = {
            "auth_url": access["ST_AUTH"],
            "user": access["ST_USER"],
            "key": access["ST_KEY"],
        }
        self._threads = threads
        self._source = source
        self._out = out
        self.stored = 0

    @contextmanager
    def _repository(self, container: str) -> Iterator[Repository]:
        store = open_store(f"swift:{container}", "a", self._options)
        yield Repository(store, derive.derive(bytes(range(32)), "a"))
        store.close()

    def put(self, container: str) -> float:
        start = time.monotonic()
        with self._repository(container) as repository, FileSource(self._source) as source:
            backup = Backup("b", "v", "2026-11-23T00:00:00Z")
            root = save(repository, source, backup, concurrency=self._threads)
        self.stored = root.statistics.bytes_stored
        return time.monotonic() - start

    def get(self, container: str) -> float:
        self._out.unlink(missing_ok=True)
        start = time.monotonic()
        with self._repository(container) as repository:
            restore(repository, "b", self._out, create=True, concurrency=self._threads)
        return time.monotonic() - start


def remove(access: dict[str, str], container: str) -> None:
    """Remove `container` and all that is in it."""
    connection = swiftclient.Connection(access["ST_AUTH"], access["ST_USER"], access["ST_KEY"])
    _, found = connection.get_container(container, full_listing=True)
    for one in found:
        connection.delete_object(container, one["name"])
    connection.delete_container(container)
    connection.close()


def measure(
    name: str, access: dict[str, str], source: Path, rounds: int, threads: int
) -> Iterator[str]:
    """The lines of the report about the data in `source`."""
    out = source.with_name("out")
    size = source.stat().st_size
    ours, theirs = Lunr(access, threads, source, out), Plain(access, threads, source, out)
    programs: list[tuple[str, Any, str]] = [("lunr", ours, "-a"), ("plain", theirs, "")]
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for work in WORKS:
            for program, does, _ in programs:
                os.sync()
                time.sleep(_SETTLE)
                seconds = getattr(does, work)(f"{program}{number}")
                if number:
                    rates.setdefault((program, work), []).append(size / MIB / seconds)
        for program, _, suffix in programs:
            remove(access, f"{program}{number}{suffix}")
        programs.reverse()
        print(f"{name}: round {number} of {rounds}", file=sys.stderr)
    for work in WORKS:
        plain, lunr = rates["plain", work], rates["lunr", work]
        ratio = statistics.median(our / their for our, their in zip(lunr, plain, strict=True))
        shown = "".join(f"{statistics.median(found):>9.0f}" for found in (plain, lunr))
        yield f"{name:<8}{work:<5}{shown}{ratio:>9.0%}"
    yield f"{name}: lunr stored {ours.stored / size:.2f} of its bytes"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="MiB of data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4, help="requests at once, of each")
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as folder:
        cluster = Cluster(Path(folder) / "swift")
        cluster.start(None, None)
        try:
            access = read_env(Path(folder) / "swift" / "env")
            for name, make in (("random", random_data), ("text", text_data)):
                source = Path(folder) / "source"
                make(source, arguments.size * MIB)
                lines += measure(name, access, source, arguments.rounds, arguments.threads)
        finally:
            cluster.wipe()
    print(f"MiB/s of the volume; load {load:.1f} at the start")
    print(f"{'data':<8}{'work':<5}{'plain':>9}{'lunr':>9}{'lunr is':>9}")
    for line in lines:
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} MiB RSS at most, of both together")


if __name__ == "__main__":
    main()
