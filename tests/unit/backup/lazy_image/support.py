"""A volume that fills, small enough to look through, from a store that can be told to fail."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lunr.backup import errors
from lunr.backup.format.names import Geometry
from lunr.backup.lazy_image import presence_file
from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.presence import UNIT, ChunkLayout, area_with
from lunr.backup.lazy_image.restored_volume import RestoredVolume
from lunr.backup.read.backup_reader import Source, kept_root
from lunr.backup.stores.base import Store
from lunr.backup.stores.memory import MemoryStore
from tests.support.waiting import PATIENCE
from tests.unit.backup.support import Faulty, repository, save_bytes

#: Two units a block, four blocks a chunk, four chunks a segment.
GEOMETRY = Geometry(block=2 * UNIT, chunk=8 * UNIT, segment_chunks=4)
CHUNK = GEOMETRY.chunk


class Weather:
    """What a store does before it answers: nothing, or wait, or fail."""

    def __init__(self, fails: float = 0.0, delay: float = 0.0, seed: int = 0) -> None:
        self.fails = fails
        self.delay = delay
        self.away = False
        self.gate: threading.Event | None = None
        self.names: list[str] = []
        self._random = random.Random(seed)

    def __call__(self, _call: str, name: str) -> None:
        self.names.append(name)
        if self.gate is not None:
            self.gate.wait(PATIENCE)
        if self.delay:
            time.sleep(self._random.random() * self.delay)
        if self.away or self._random.random() < self.fails:
            raise errors.StoreUnavailable(store="test", reason="Bad weather.")


def content(rng: random.Random, chunks: int = 10, tail: int = 1000) -> bytes:
    """Chunks of random bytes, some of zeros or half of zeros, and a short one."""
    parts = []
    for _ in range(chunks):
        kind = rng.random()
        half = rng.randbytes(CHUNK // 2)
        parts.append(
            bytes(CHUNK) if kind < 0.25 else half + (bytes(CHUNK // 2) if kind < 0.4 else half)
        )
    # A whole segment of zeros.
    parts[4:8] = [bytes(CHUNK)] * len(parts[4:8])
    return b"".join(parts) + rng.randbytes(tail)


class World:
    """A backup, and a volume that fills from it, which can be opened time and again."""

    def __init__(
        self,
        folder: Path,
        data: bytes,
        size: int | None = None,
        is_zero: bool = True,
        store: Store | None = None,
        local: Callable[[Path], BackingFile] = BackingFile,
    ) -> None:
        self.data = data
        self.size = size or len(data)
        self.is_zero = is_zero
        self.weather = Weather()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.target, self.map, self.live = folder / "target", folder / "map", folder / "live"
        self.objects = store or MemoryStore()
        self.repository = repository(Faulty(self.objects, self.weather))
        save_bytes(repository(self.objects), data, "b1", geometry=GEOMETRY)
        self._local = local
        self.make()
        self.source: Source
        self.volume: RestoredVolume
        self._open: list[Callable[[], None]] = []

    def make(self) -> None:
        """Begin anew, with an empty target."""
        with self.target.open("wb") as file:
            if self.is_zero:
                file.truncate(self.size)
            else:
                file.write(b"\xee" * self.size)
        source = Source(self.repository, self.repository.load_root("b1"), self.report)
        self.root = self.map.with_name("map.root")
        self.root.unlink(missing_ok=True)
        zeros = source.zero_ranges(self.size) if self.is_zero else []
        shape = ChunkLayout(self.size, CHUNK)
        presence_file.create(self.map, shape, "b1", area_with(shape, zeros))
        self.live.unlink(missing_ok=True)

    def report(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def open(self) -> RestoredVolume:
        root = kept_root(self.repository, "b1", self.root)
        self.source = Source(self.repository, root, self.report)
        data, file = self._local(self.target), self._local(self.map)
        opened = presence_file.Maps(file, self.live)
        self.volume = RestoredVolume(self.source, data, opened, self.is_zero)
        self._open = [self.source.close, opened.close, data.close, file.close]
        return self.volume

    def close(self) -> None:
        """Let go without a word, as a process does that is killed."""
        for close in self._open:
            close()
        self._open = []

    def reopen(self) -> RestoredVolume:
        self.close()
        return self.open()

    def read(self, offset: int, length: int, patience: float = 5.0) -> bytes:
        buffer = memoryview(bytearray(length))
        until = time.monotonic() + patience
        return bytes(self.volume.read(offset, buffer, until))

    def write(self, offset: int, data: bytes, patience: float = 5.0) -> None:
        self.volume.write(offset, memoryview(data), time.monotonic() + patience)

    def zero(self, offset: int, length: int, patience: float = 5.0) -> None:
        self.volume.zero(offset, length, time.monotonic() + patience)

    def all(self) -> bytes:
        return self.read(0, self.size)

    def fill(self) -> None:
        for chunk in range(self.volume.presence.shape.chunks):
            with contextlib.suppress(TimeoutError):
                self.volume.fill(chunk, time.monotonic() + 1.0)
