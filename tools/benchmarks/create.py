"""How long a volume takes from POST to ACTIVE, on a files pool, through the whole service.

The baseline is what no service can save: a file made and synced to the same
disk, once for the volume and once for each of the three transactions that are
committed (created, claimed, done).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.demos.stage import Lunr

MUST_REACH_MS = 100
SYNCS = 4


def create(lunr: Lunr, count: int) -> list[float]:
    """Seconds from POST to ACTIVE of `count` volumes, one after another."""
    client = lunr.client()
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        volume = client.volumes.create(size=1)
        while client.volumes.get(volume.id).status != "ACTIVE":
            time.sleep(0.002)
        took.append(time.perf_counter() - begun)
    return took


def sync(folder: Path, count: int) -> list[float]:
    """Seconds to write and sync SYNCS small files, `count` times."""
    took = []
    for number in range(count):
        begun = time.perf_counter()
        for part in range(SYNCS):
            with (folder / f"{number}-{part}").open("wb") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        took.append(time.perf_counter() - begun)
    return took


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="volumes to create  [50]")
    count = parser.parse_args().count
    folder = Path(tempfile.mkdtemp(prefix="lunr-bench-"))
    lunr = Lunr(folder / "lunr")
    try:
        lunr.wait_until_up()
        create(lunr, 5)  # the first ones load code
        (folder / "sync").mkdir()
        baseline = sync(folder / "sync", count)
        took = create(lunr, count)
    finally:
        lunr.stop()
        shutil.rmtree(folder)
    base = statistics.median(baseline) * 1000
    table = Table("", "median ms", "slowest ms", "of the baseline", "must reach")
    table.title = f"POST to ACTIVE, {count} volumes one after another"
    for name, values, goal in (
        (f"baseline: {SYNCS} synced files", baseline, ""),
        ("create a volume", took, f"<= {MUST_REACH_MS} ms"),
    ):
        median = statistics.median(values) * 1000
        ratio = f"{median / base:.1f}"
        table.add_row(name, f"{median:.1f}", f"{max(values) * 1000:.1f}", ratio, goal)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
