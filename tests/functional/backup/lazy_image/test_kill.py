"""kill -9 of a process that fills a volume, at any moment, time and again on the same volume.

The victim is forked: two guests write and read in it, a fill works beside them, the
store delays and fails. Each guest says what it is about to do and when that was
acknowledged, on a pipe, which outlives the victim. Nothing is ever synced.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import defaultdict
from pathlib import Path
from typing import NoReturn

import pytest

from lunr.backup.lazy_image.background_fill import BackgroundFill
from lunr.backup.lazy_image.presence import UNIT
from lunr.backup.stores.files import FileStore
from tests.support.thorough import examples
from tests.unit.backup.lazy_image.support import CHUNK, World, content

SECTOR = 512
#: LUNR_KILLS=5000 tries many.
KILLS = int(os.environ.get("LUNR_KILLS", examples(60, 5000)))
GUESTS = 2


class Shadow:
    """What may be in each sector."""

    def __init__(self, data: bytes) -> None:
        self.sure = bytearray(data)
        #: sector: what unacknowledged writes may have left there
        self.maybe = defaultdict[int, set[bytes]](set)

    def take(self, lines: list[str]) -> None:
        """What a victim said: ``begin GUEST SEED OFFSET LENGTH`` or ``done GUEST``."""
        open_: dict[str, tuple[int, bytes]] = {}
        for line in lines:
            word, guest, *rest = line.split()
            if word == "begin":
                seed, offset, length = map(int, rest)
                open_[guest] = (offset, written(seed, length))
            else:
                offset, data = open_.pop(guest)
                self.sure[offset : offset + len(data)] = data
                for at in range(0, len(data), SECTOR):
                    self.maybe.pop((offset + at) // SECTOR, None)
        for offset, data in open_.values():
            for at in range(0, len(data), SECTOR):
                self.maybe[(offset + at) // SECTOR].add(data[at : at + SECTOR])

    def check(self, found: bytes) -> None:
        """Compare, and believe from now on what was seen."""
        wrong = []
        for at in range(0, len(found), SECTOR):
            seen = found[at : at + SECTOR]
            sure = self.sure[at : at + SECTOR]
            if seen != sure and seen not in self.maybe.get(at // SECTOR, ()):
                wrong.append(at // SECTOR)
        assert not wrong, wrong[:8]
        self.sure[:] = found
        self.maybe.clear()


def written(seed: int, length: int) -> bytes:
    """What the guest writes; seed 0 is a discard."""
    return random.Random(seed).randbytes(length) if seed else bytes(length)


def victim(world: World, pipe: int, seed: int) -> NoReturn:
    """Work until killed."""
    try:
        world.weather.delay, world.weather.fails = 0.003, 0.1
        volume = world.open()
        fill = BackgroundFill(volume, world.report, concurrency=2)
        threading.Thread(target=fill.run, daemon=True).start()
        guests = [
            threading.Thread(target=guest, args=(world, pipe, seed, number), daemon=True)
            for number in range(GUESTS)
        ]
        for one in guests:
            one.start()
        for one in guests:
            one.join()
        signal.pause()
    finally:
        os._exit(1)


def guest(world: World, pipe: int, seed: int, number: int) -> None:
    """Reads and writes every second chunk; the other guest has the rest."""
    rng = random.Random(f"{seed} {number}")
    size = world.size
    while True:
        grain = rng.choice([SECTOR, UNIT, UNIT, CHUNK])
        chunk = rng.randrange(size // CHUNK // GUESTS) * GUESTS + number
        offset = chunk * CHUNK + rng.randrange(CHUNK // grain) * grain
        length = min(rng.choice([1, 2, 5]) * grain, (chunk + 1) * CHUNK - offset)
        kind = rng.random()
        if kind < 0.3:
            world.read(offset, length)
            continue
        number_ = rng.randrange(1, 1 << 30) if kind < 0.9 else 0
        os.write(pipe, f"begin {number} {number_} {offset} {length}\n".encode())
        if number_:
            world.write(offset, written(number_, length))
        else:
            world.zero(offset, length)
        os.write(pipe, f"done {number}\n".encode())


def killed_at(world: World, seed: int, writes: int) -> list[str]:
    """Let a victim work until it has said that so many writes are done; all that it said."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        victim(world, theirs, seed)
    os.close(theirs)
    with os.fdopen(ours) as said:
        lines: list[str] = []
        while sum(line.startswith("done") for line in lines) < writes:
            line = said.readline()
            assert line, "it ended by itself"
            lines.append(line.rstrip())
        os.kill(pid, signal.SIGKILL)
        lines += said.read().splitlines()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return lines


@pytest.mark.timeout(3600)
def test_no_write_is_lost_and_no_fetch_is_stale(tmp_path: Path) -> None:
    rng = random.Random(KILLS)
    acknowledged = midway = 0
    for round_ in range(-(-KILLS // 12)):
        folder = tmp_path / str(round_)
        folder.mkdir()
        data = content(rng, chunks=64, tail=0)
        is_zero = bool(round_ % 2)
        world = World(folder, data, len(data) + 2 * CHUNK, is_zero, FileStore(folder / "store"))
        world.open()  # once, so that the root is kept
        world.close()
        shadow = Shadow(data.ljust(world.size, b"\0"))
        for kill in range(12):
            lines = killed_at(world, round_ * 100 + kill, rng.randrange(20))
            shadow.take(lines)
            acknowledged += sum(line.startswith("done") for line in lines)
            world.weather.fails = 0.0
            world.open()
            midway += 0 < world.volume.presence.present < world.volume.presence.shape.chunks
            # All of it is looked at in the end; in between, some, so that not all is fetched.
            spots = rng.sample(range(world.volume.presence.shape.chunks), 3)
            for spot in spots:
                at = spot * CHUNK
                seen = world.read(at, min(CHUNK, world.size - at))
                assert seen == world.read(at, len(seen))
            world.close()
        world.open()
        shadow.check(world.all())
        world.fill()
        assert world.volume.presence.complete
        assert world.target.read_bytes() == shadow.sure
        world.close()
        world.objects.close()
    print(f"{acknowledged} writes, {midway} kills with some chunks there")
    assert acknowledged > KILLS
    assert midway > KILLS // 4
