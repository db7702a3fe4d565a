"""What an hourly backup costs by the size of its volume: seconds, and bytes read.

usage: tools/bench sizes [--largest GIB] [--full GIB] [--rounds N] [--folder DIR] [--plot FILE.svg]

Sparse volumes of 1 GiB to 1 TiB hold 1 GiB of random data each, in pieces of 4 MiB evenly over
all of the volume: the hardest way, as hardly two of them share a segment. Others, of 1 GiB to
8 GiB, are full of data. Before each backup 320 blocks of 32 KiB (10 MiB) in the data are rewritten
at random and written out. What is timed is a node's whole job: the snapshot in a `files` pool, what
has changed, a process for the engine, and the store, a folder. "Known" has the snapshot of the last
backup; "unknown" has lost it, so that all data are read and compared by their hashes.

Needs root (an XFS with reflink is made in a file where the folder has none), and up to four times
the bytes of the largest full volume. To draw a plot, matplotlib must be installed (the extra
`bench`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lunr.storage.agent.job import ClaimedJob
from lunr.storage.baselines import Baselines
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.jobs import backups
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.targets.tgt.target import TgtTarget

MIB, GIB = 1 << 20, 1 << 30
BLOCK, PIECE = 32 << 10, 4 * MIB
WRITTEN = 320
KINDS = ("known", "unknown")


@dataclass
class Cost:
    """Of one backup, the medians of all rounds."""

    seconds: float
    bytes_read: float
    bytes_stored: float
    objects: float


#: By GiB of the volume, and by whether the changes were known.
Curve = dict[int, dict[str, Cost]]


class Bench:
    """A node with a files pool and a store."""

    def __init__(self, folder: Path, most: int) -> None:
        """In `folder`; the pool has room for twice `most` GiB."""
        self.pool = FilesPool(folder / "pool", image_gib=2 * most + 16)
        self.pool.check()
        engine = Engine(url=f"files:{folder / 'store'}", options={}, key="5a" * 32)
        restores = RestoreRegistry(self.pool, engine, folder / "state", folder / "run")
        exports = Exports(restores, TgtTarget(folder / "tgtd", self.pool.folder))
        baselines = Baselines(self.pool, keep=True, days=1)
        self.node = NodeContext(self.pool, exports, engine, restores, baselines)
        self._folder = folder

    def close(self) -> None:
        """Unmount what the pool has mounted, and let go of it."""
        self.pool.close()
        if self.pool.mountpoint.is_mount():
            subprocess.run(["umount", self.pool.mountpoint], check=True)

    def volume(self, gib: int, data: int) -> Volume:
        """A new one of `gib` GiB, with `data` GiB of random bytes in pieces all over it."""
        return Volume(self.node, self._folder / "store", gib * GIB, data * GIB)


class Volume:
    """A volume that is written to and saved."""

    def __init__(self, node: NodeContext, store: Path, size: int, data: int) -> None:
        self._node = node
        self._store = store
        self._id = f"v{size // GIB}of{data // GIB}"
        self._chance = random.Random(1)
        self._serial = 0
        pieces, every = data // PIECE, size // data * PIECE
        self._places = [number * every for number in range(pieces)]
        node.pool.create(self._id, size)
        with self._file() as file:
            for place in self._places:
                os.pwrite(file, os.urandom(PIECE), place)

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        file = os.open(self._node.pool.path(self._id), os.O_RDWR)
        try:
            yield file
            os.fsync(file)
        finally:
            os.close(file)

    def write(self) -> None:
        """Rewrite some blocks of the data."""
        blocks = len(self._places) * (PIECE // BLOCK)
        with self._file() as file:
            for block in sorted(self._chance.sample(range(blocks), WRITTEN)):
                piece, rest = divmod(block * BLOCK, PIECE)
                os.pwrite(file, os.urandom(BLOCK), self._places[piece] + rest)

    def save(self, *, known: bool = True) -> Cost:
        """A backup, on top of the last one; `known`: what has changed since."""
        parent = f"b{self._serial}" if self._serial else None
        if parent is not None and not known:
            self._node.baselines.give_up(self._id, parent)
        self._serial += 1
        payload = {
            "backup_id": f"b{self._serial}",
            "parent_id": parent,
            "repository": self._id,
            "created_at": "2026-11-23T00:00:00Z",
        }
        claimed = {"id": "j", "kind": "backup.create", "lease": "l", "lease_seconds": 60}
        job = ClaimedJob({**claimed, "attempt": 1, "payload": payload, "volume_id": self._id})
        os.sync()
        started = time.monotonic()
        result = backups.save(self._node, job)
        seconds = time.monotonic() - started
        figures = (result[name] for name in ("bytes_read", "bytes_stored", "objects_stored"))
        return Cost(seconds, *figures)

    def remove(self) -> None:
        """Remove it, and its backups."""
        self._node.pool.delete(self._id)
        subprocess.run(["rm", "-r", self._store / self._id], check=True)


def measure(volume: Volume, rounds: int) -> dict[str, Cost]:
    volume.save()
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind in KINDS:
            volume.write()
            cost = volume.save(known=kind == "known")
            if number:
                costs[kind].append(cost)
    return {
        kind: Cost(
            *(
                statistics.median(getattr(one, name) for one in found)
                for name in ("seconds", "bytes_read", "bytes_stored", "objects")
            )
        )
        for kind, found in costs.items()
    }


def _powers(most: int, factor: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * factor <= most:
        sizes.append(sizes[-1] * factor)
    return sizes


def _ticks(numbers: Iterable[int]) -> tuple[list[int], list[str]]:
    """Where an axis is marked, and how: by plain numbers."""
    places = list(numbers)
    return places, [str(number) for number in places]


def plot(curves: dict[str, Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lunr"  # the same picture is the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, which is smaller than its outlines
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for (data, curve), style in zip(curves.items(), ("o-", "s--"), strict=True):
        for kind, color in zip(KINDS, ("C0", "C1"), strict=True):
            sizes = list(curve)
            costs = [by_kind[kind] for by_kind in curve.values()]
            label = f"{data}, changes {kind}"
            options = {"color": color, "linewidth": 1.2, "markersize": 4, "label": label}
            axes[0].plot(sizes, [one.seconds for one in costs], style, **options)
            axes[1].plot(sizes, [one.bytes_read / MIB for one in costs], style, **options)
    for axis, title in zip(axes, ("seconds", "MiB read"), strict=True):
        axis.set_title(f"{title} for a backup of 10 MiB", fontsize=10)
        axis.set_xlabel("GiB of the volume")
        axis.set_xscale("log", base=4)
        axis.set_xticks(*_ticks(_powers(max(map(max, curves.values())), 4)))
        axis.grid(alpha=0.2)
    axes[0].set_ylim(bottom=0)
    axes[1].set_yscale("log")
    axes[1].set_yticks(*_ticks([10, 100, 1000, 10000]))
    for axis in axes:
        axis.minorticks_off()
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=1024, help="GiB of the largest sparse one")
    parser.add_argument("--full", type=int, default=8, help="GiB of the largest full one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file")
    arguments = parser.parse_args()
    wanted = [("1 GiB of data", size, 1) for size in _powers(arguments.largest, 4)]
    wanted += [("full", size, size) for size in _powers(arguments.full, 2)]
    curves: dict[str, Curve] = {}
    print(f"{'volume':<26}{'changes':<9}{'seconds':>9}{'read':>10}{'stored':>10}{'objects':>9}")
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), arguments.full)
        try:
            for name, size, data in wanted:
                volume = bench.volume(size, data)
                costs = measure(volume, arguments.rounds)
                volume.remove()
                curves.setdefault(name, {})[size] = costs
                for kind, cost in costs.items():
                    print(
                        f"{f'{size} GiB, {name}':<26}{kind:<9}{cost.seconds:>9.2f}"
                        f"{cost.bytes_read / MIB:>10.1f}{cost.bytes_stored / MIB:>10.1f}"
                        f"{cost.objects:>9.0f}"
                    )
                sys.stdout.flush()
        finally:
            bench.close()
    print("(read and stored in MiB; medians)")
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
