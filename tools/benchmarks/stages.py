"""Where the time of a full save goes: stage by stage, to a folder and to a real Swift.

usage: tools/bench stages [--size MiB] [--rounds N] [--threads N] [--folder DIR]

The source is a file in the page cache, of random bytes and then of words. Every stage is timed in
every thread, by a clock on the wall and by the thread's own CPU time; the first includes what it
waits for the store, a processor or Python's lock. The table gives seconds for each GiB of the
volume, of all threads together, as medians of N rounds (3).

"turn" is waiting for a turn at the store, which has room for as many requests as --threads says
(4); "storing" is a request, with its MD5 for Swift; "other" is Python between the stages. "begin,
end" is what one thread does before and after all: session, condemned lists, the root; in a folder
also the barrier that brings all to the disk. "save" is the whole: its wall is what somebody waits
for, its CPU what this process took. Swift's servers are other processes, and want the same CPUs.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from lunr.backup import parallel
from lunr.backup.format import blocks
from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.save import save
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.object_writer import Output
from lunr.backup.save.save import Backup
from lunr.backup.stores import Store, open_store
from lunr.backup.stores.base import Retrying

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.benchmarks.swift import random_data, text_data
from tools.services.loopback import read_env
from tools.services.swift import Cluster

MIB, GIB = 1 << 20, 1 << 30

#: What is timed, and where it is. What a stage does within another counts for itself alone.
STAGES: Mapping[str, tuple[Any, str]] = {
    "reading": (FileSource, "read"),
    "zeros?": (save, "_is_zero"),
    "hashing": (blocks, "hash_blocks"),
    "compressing": (blocks, "_frames"),
    "encrypting": (blocks, "_encrypted"),
    "turn": (Output, "_put"),
    "storing": (Retrying, "put"),
    "other": (save._Save, "_save_chunk"),
    "threads": (parallel, "each"),
    "begin, end": (save, "save"),
}


class Clock:
    """The seconds of each stage: on the wall, and of CPU time."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._local = threading.local()
        self._lock = threading.Lock()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed as `stage`."""

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            within: list[tuple[float, float]] = self._local.__dict__.setdefault("within", [])
            if stage == "storing" and not within:
                return function(*args, **options)  # of a session or a root: not the pipeline's
            within.append((0.0, 0.0))
            wall, cpu = time.monotonic(), time.thread_time()
            try:
                return function(*args, **options)
            finally:
                wall, cpu = time.monotonic() - wall, time.thread_time() - cpu
                inner = within.pop()
                if within:
                    within[-1] = within[-1][0] + wall, within[-1][1] + cpu
                with self._lock:
                    had = self.seconds[stage]
                    self.seconds[stage] = had[0] + wall - inner[0], had[1] + cpu - inner[1]

        return run


@contextmanager
def clocked() -> Iterator[Clock]:
    """A clock that runs in every stage."""
    clock = Clock()
    with ExitStack() as patches:
        for stage, (place, name) in STAGES.items():
            timed = clock.timed(stage, getattr(place, name))
            patches.enter_context(mock.patch.object(place, name, timed))
        yield clock


def measure(store: Store, source: Path, threads: int) -> dict[str, tuple[float, float]]:
    """The seconds (on the wall, CPU) of each stage of a save of `source`."""
    repository = Repository(store, derive.derive(bytes(range(32)), "a"))
    backup = Backup("b", "v", "2026-11-23T00:00:00Z")
    with clocked() as clock, FileSource(source) as opened:
        wall, cpu = time.monotonic(), time.process_time()
        save.save(repository, opened, backup, concurrency=threads)
        whole = time.monotonic() - wall, time.process_time() - cpu
    del clock.seconds["threads"]  # the caller waits there for the others
    return {**clock.seconds, "save": whole}


def table(name: str, size: int, rounds: list[dict[str, tuple[float, float]]]) -> Iterator[str]:
    yield f"{name:<24}{'wall s/GiB':>12}{'CPU s/GiB':>12}"
    for stage in rounds[0]:
        wall, cpu = (statistics.median(one[stage][i] for one in rounds) for i in (0, 1))
        yield f"  {stage:<22}{wall * GIB / size:>12.2f}{cpu * GIB / size:>12.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024, help="MiB of data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=4, help="requests at once")
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as place:
        folder = Path(place)
        cluster = Cluster(folder / "swift")
        cluster.start(None, None)
        try:
            access = read_env(folder / "swift" / "env")
            options = {name: access[f"ST_{name.upper()}"] for name in ("user", "key")}
            options["auth_url"] = access["ST_AUTH"]
            for data, make in (("random", random_data), ("text", text_data)):
                source = folder / "source"
                make(source, arguments.size * MIB)
                found: dict[str, list[dict[str, tuple[float, float]]]] = defaultdict(list)
                for number in range(arguments.rounds + 1):
                    for name, url in (("folder", f"files:{folder}/store"), ("Swift", "swift:s")):
                        os.sync()
                        time.sleep(2.0)  # what came before is written out
                        with closing(open_store(url, f"a{number}", options)) as store:
                            seconds = measure(store, source, arguments.threads)
                            remove(store)
                        if number:
                            found[f"{data}, to {name}"].append(seconds)
                for title, rounds in found.items():
                    for line in table(title, arguments.size * MIB, rounds):
                        print(line)
                sys.stdout.flush()
        finally:
            cluster.wipe()


def remove(store: Store) -> None:
    """Remove all that is in `store`."""
    for name, _ in list(store.list()):
        store.delete(name)


if __name__ == "__main__":
    main()
