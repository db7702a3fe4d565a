"""What a snapshot costs a writer: synchronous writes to a logical volume, in the VM.

Each row is a way to write (O_DIRECT and O_DSYNC, one write at a time), each
column what it is written to; the number is how many times as long it takes as
the same writes to a plain logical volume. Every write under a snapshot is the
first one to its place since that snapshot was taken. The best of all rounds is
compared: what else the machine does only makes a round longer.

The VM's disk has a cache that is always quick: what is counted are writes and
work, not the movements of a disk's arm.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lunr.common.units import KIB, MIB
from lunr.storage.pools.lvm import cow

TOP = Path(__file__).parents[2]
GROUP = "lunr-bench"
VOLUME = 64 * MIB

#: Pattern, bytes of a write, writes, bytes that they are spread over. Each has its own part.
WORK = [
    (pattern, size, count, region)
    for pattern in ("sequential", "random")
    for size, count, region in (
        (4 * KIB, 256, 4 * MIB),
        (32 * KIB, 128, 8 * MIB),
        (MIB, 16, 16 * MIB),
    )
]


def run(*argv: str | Path) -> None:
    """Run a command; its output is shown only when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{argv}: {done.stdout}{done.stderr}")


def prepare(disk: Path) -> None:
    """Make the volumes; the disk was written all over first, so that nothing in it is new."""
    buffer = mmap.mmap(-1, 4 * MIB)
    buffer[:] = random.Random(1).randbytes(4 * MIB)
    file = os.open(disk, os.O_WRONLY | os.O_DIRECT)
    for start in range(0, os.lseek(file, 0, os.SEEK_END), len(buffer)):
        os.pwrite(file, buffer, start)
    os.close(file)
    run("pvcreate", "-qqffy", disk)
    run("vgcreate", "-qq", GROUP, disk)
    run("lvcreate", "-qqy", "-L", f"{VOLUME}b", "-n", "plain", GROUP)
    pool = ("--type", "thin-pool", "-Zy", "--poolmetadatasize", "8M")
    run("lvcreate", "-qqy", *pool, "-L", f"{5 * VOLUME}b", "-n", "pool", GROUP)
    run("lvcreate", "-qqy", "-V", f"{VOLUME}b", "-T", f"{GROUP}/pool", "-n", "thin")
    for name in ("plain", "thin"):
        with Path("/dev", GROUP, name).open("wb") as device:
            for _ in range(VOLUME // len(buffer)):
                device.write(buffer)
            os.fsync(device.fileno())


_COW = ("-s", "-c", f"{cow.CHUNK}b", "-L", f"{VOLUME + 16 * MIB}b", f"{GROUP}/plain")
_THIN = ("-s", "-kn", "-ay", "-pr", f"{GROUP}/thin")

#: Column: the volume that is written to, and lvcreate's words for each that is there meanwhile.
KINDS: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "plain": ("plain", []),
    "dm-snapshot": ("plain", [_COW]),
    "3 of them": ("plain", [_COW] * 3),
    "thin": ("thin", []),
    "thin snapshot": ("thin", [_THIN]),
    "3 such": ("thin", [_THIN] * 3),
    "thin, new blocks": ("fresh0", [("-V", f"{VOLUME}b", "-T", f"{GROUP}/pool")]),
}


def seconds(device: Path, chance: random.Random) -> list[float]:
    """How long each of WORK takes."""
    took = []
    file = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
    begin = 0
    for pattern, size, count, region in WORK:
        places = list(range(begin, begin + region, size))
        places = chance.sample(places, count) if pattern == "random" else places[:count]
        buffer = mmap.mmap(-1, size)
        buffer[:] = chance.randbytes(size)
        started = time.perf_counter()
        for place in places:
            os.pwrite(file, buffer, place)
        took.append(time.perf_counter() - started)
        begin += region
    os.close(file)
    return took


def measure(rounds: int) -> dict[str, list[list[float]]]:
    """For each kind the times of each of WORK by rounds, but for a first one that warms up."""
    times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    chance = random.Random(2)
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        for kind in chance.sample(sorted(KINDS), len(KINDS)):
            name, others = KINDS[kind]
            for index, words in enumerate(others):
                run("lvcreate", "-qqy", "-n", f"fresh{index}", *words)
            took = seconds(Path("/dev", GROUP, name), chance)
            for index in range(len(others)):
                run("lvremove", "-qqfy", f"{GROUP}/fresh{index}")
            if number:
                times[kind].append(took)
    return times


def table(times: dict[str, list[list[float]]]) -> Table:
    """The best of each kind's rounds, by the best of plain's."""
    others = [kind for kind in KINDS if kind != "plain"]
    shown = Table("writes", "plain: writes/s", *others)
    shown.title = (
        f"Times as long as plain, best of {len(times['plain'])} rounds, "
        f"chunks of {cow.CHUNK // KIB} KiB (dm-snapshot) and 64 KiB (thin)"
    )
    for column in range(1, len(KINDS) + 1):
        shown.columns[column].justify = "right"
    for index, (pattern, size, count, _) in enumerate(WORK):
        best = {kind: min(took[index] for took in rounds) for kind, rounds in times.items()}
        ratios = (f"{best[kind] / best['plain']:.1f}" for kind in others)
        shown.add_row(f"{pattern} {size // KIB} KiB", f"{count / best['plain']:.0f}", *ratios)
    return shown


def main() -> int:
    """Measure and print the table; outside of the VM, start one for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count  [5]")
    rounds = parser.parse_args().rounds
    if "LUNR_VM" not in os.environ:
        vm = [f"{TOP}/tools/vm", "run", "--machine", "qemu", "--disk", "768M", "--"]
        argv: list[str] = [*vm, sys.executable, __file__, *sys.argv[1:]]
        return subprocess.run(argv, check=False).returncode
    prepare(Path("/dev/vda"))
    times = measure(rounds)
    run("vgremove", "-qqffy", GROUP)
    Console(width=130).print(table(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
