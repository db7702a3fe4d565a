"""What a long chain of incremental backups costs: to store, to restore, and to keep its end.

usage: tools/bench chains [--size MiB] [--saves N] [--folder DIR] [--plot FILE.svg]

Before each backup 1 % of the volume's 32 KiB blocks are rewritten. They are random ones, or most of
them are always the same (80 % of the writes go to 20 % of the blocks), or it is like a database:
half of the writes go to a twentieth of the volume, a quarter anywhere, and a quarter is a log that
goes round. In the end the last backup is restored, all others are deleted, and what only they
needed is collected. The store takes about three times what is changed in all. To draw a plot,
matplotlib must be installed (the extra `bench`).
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lunr.backup.format.names import Buffer, Geometry
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import objects_of
from lunr.backup.keys import derive
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.base import AT_ONCE, Slot
from lunr.backup.stores.files import FileStore

MIB = 1 << 20
GEOMETRY = Geometry()

#: Given the number of blocks, gives those that are written before each backup.
Pattern = Callable[[random.Random, int], Iterator[set[int]]]


def anywhere(chance: random.Random, blocks: int) -> Iterator[set[int]]:
    while True:
        yield set(chance.sample(range(blocks), blocks // 100))


def hot_spots(chance: random.Random, blocks: int) -> Iterator[set[int]]:
    hot = chance.sample(range(blocks), blocks // 5)
    while True:
        yield {
            chance.choice(hot) if chance.random() < 0.8 else chance.randrange(blocks)
            for _ in range(blocks // 100)
        }


def database(chance: random.Random, blocks: int) -> Iterator[set[int]]:
    quarter, end = blocks // 400, 0
    while True:
        log = {blocks // 2 + (end + number) % (blocks // 2) for number in range(quarter)}
        end += quarter
        often = {chance.randrange(blocks // 20) for _ in range(2 * quarter)}
        yield log | often | {chance.randrange(blocks) for _ in range(quarter)}


PATTERNS: dict[str, Pattern] = {
    "anywhere": anywhere,
    "80/20": hot_spots,
    "database": database,
}


class Counting(FileStore):
    """A folder that counts requests and bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sizes: dict[str, int] = {}
        self.gets = self.bytes_read = 0

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        super().put(name, *buffers, durable=durable, slot=slot)
        self.sizes[name] = sum(map(len, buffers))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        data = super().get(name, offset, length)
        self.gets += 1
        self.bytes_read += len(data)
        return data


@dataclass
class Chain:
    """How it went: a list has one figure for each backup after the full one."""

    stored: list[float] = field(default_factory=list)  # bytes in all / bytes changed in all
    needed: list[float] = field(default_factory=list)  # bytes that the newest needs / volume
    objects: list[float] = field(default_factory=list)  # that the newest needs / of a full one
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def needed(repository: Repository, root: Root) -> set[str]:
    names: set[str] = set()
    for chunks, ref in repository.segments_of(root):
        if ref is not None:
            names.add(ref.name("segments"))  # type: ignore[arg-type]
            names.update(objects_of(*repository.load_segment(ref, len(chunks))))
    return names


def run(pattern: Pattern, folder: Path, size: int, saves: int) -> Chain:
    chance = random.Random(1)
    chain = Chain()
    store = Counting(folder / "store")
    repository = Repository(store, derive.derive(derive.PUBLIC_MASTER, "default"))
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))

    def save_now(number: int, changed: list[tuple[int, int]] | None) -> Root:
        backup = Backup(
            backup_id=f"b{number}",
            volume_id="volume",
            created_at="2026-11-23T00:00:00Z",
            parent_id=f"b{number - 1}" if number else None,
            changed=changed,
        )
        started = time.monotonic()
        with FileSource(source) as opened:
            root = save(repository, opened, backup)
        chain.seconds += time.monotonic() - started
        return root

    full = save_now(0, None)
    full_objects = len(needed(repository, full))
    full_seconds = restored(repository, store, "b0", folder)[2]
    chain.seconds = 0.0
    todo = pattern(chance, size // GEOMETRY.block)
    changed = stored = 0
    for number in range(1, saves + 1):
        ranges = []
        with source.open("r+b") as volume:
            for block in sorted(next(todo)):
                volume.seek(block * GEOMETRY.block)
                volume.write(chance.randbytes(GEOMETRY.block))
                ranges.append((block * GEOMETRY.block, (block + 1) * GEOMETRY.block))
        root = save_now(number, ranges)
        changed += len(ranges) * GEOMETRY.block
        stored += root.statistics.bytes_stored
        names = needed(repository, root)
        chain.stored.append(stored / changed)
        chain.needed.append(sum(store.sizes[name] for name in names) / size)
        chain.objects.append(len(names) / full_objects)
    gets, read, seconds = restored(repository, store, f"b{saves}", folder)
    if not filecmp.cmp(folder / "out", source, shallow=False):
        raise SystemExit("the restored volume is not what was saved")
    for number in range(saves):
        repository.delete_root(f"b{number}")
    collection = collect(repository).collection
    if collection is not None:
        sweep(repository, collection)
    held = sum(length for _, length in store.list())
    chain.lines = [
        f"stored, bytes changed = 1          {stored / changed:6.2f}",
        f"restore, bytes of the volume = 1   {read / size:6.2f}",
        f"restore, requests of a full = 1    {gets / (full_objects + 1):6.2f}",
        f"restore, seconds of a full = 1     {seconds / full_seconds:6.2f}",
        f"most that a restore would read     {max(chain.needed):6.2f}",
        f"held when only the last is left    {held / size:6.2f}",
        f"seconds for a save                 {chain.seconds / saves:6.3f}",
    ]
    store.close()
    return chain


def restored(
    repository: Repository, store: Counting, backup_id: str, folder: Path
) -> tuple[int, int, float]:
    """Restore a backup; the requests, the bytes read and the seconds that it took."""
    (folder / "out").unlink(missing_ok=True)
    store.gets = store.bytes_read = 0
    started = time.monotonic()
    restore(repository, backup_id, folder / "out", create=True)
    return store.gets, store.bytes_read, time.monotonic() - started


def plot(chains: dict[str, Chain], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lunr"  # the same picture is the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4))
    for name, chain in chains.items():
        numbers = range(1, len(chain.stored) + 1)
        for axis, figures in zip(axes, (chain.stored, chain.needed, chain.objects), strict=True):
            axis.plot(numbers, figures, label=name, linewidth=1.2)
    titles = (
        ("stored in all / changed in all", 2.5),
        ("bytes a restore reads / volume", 2.0),
        ("objects a restore reads / full backup's", 3.0),
    )
    for axis, (title, bound) in zip(axes, titles, strict=True):
        axis.axhline(bound, color="gray", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("backups")
        axis.set_ylim(0.9, bound + 0.1)
        axis.grid(alpha=0.2)
    axes[0].legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024, help="MiB of random data")
    parser.add_argument("--saves", type=int, default=500, help="backups after the full one")
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file")
    arguments = parser.parse_args()
    chains = {}
    for name, pattern in PATTERNS.items():
        with tempfile.TemporaryDirectory(prefix="lunr-chain-", dir=arguments.folder) as folder:
            chains[name] = run(pattern, Path(folder), arguments.size * MIB, arguments.saves)
        print(f"{name}: {arguments.saves} backups of {arguments.size} MiB, 1 % written before each")
        for line in chains[name].lines:
            print(f"  {line}")
        sys.stdout.flush()
    if arguments.plot:
        plot(chains, arguments.plot)


if __name__ == "__main__":
    main()
