"""A volume that fills: against a model, and what it does in trouble."""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lunr.backup.format.segments import objects_of
from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.fuse_protocol import Contended
from lunr.backup.lazy_image.fuse_wire import Op
from lunr.backup.lazy_image.presence import UNIT
from lunr.backup.lazy_image.restored_volume import SyncLost
from tests.support.thorough import examples
from tests.support.waiting import PATIENCE, SOON, wait_until
from tests.unit.backup.lazy_image.support import CHUNK, World, content
from tests.unit.backup.lazy_image.test_fuse_protocol import Kernel, read_in, write_in


class Volume(RuleBasedStateMachine):
    """Any requests, kills and fetches, in any order, give what a plain file would."""

    @initialize(
        seed=st.integers(0, 99),
        larger=st.sampled_from([0, 1, 100, CHUNK, 3 * CHUNK + 512]),
        is_zero=st.booleans(),
    )
    def start(self, seed: int, larger: int, is_zero: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.rng = random.Random(seed)
        data = content(self.rng)
        self.world = World(Path(self.folder.name), data, len(data) + larger, is_zero)
        self.world.open()
        self.model = bytearray(data.ljust(self.world.size, b"\0"))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()
            self.folder.cleanup()

    def draw(self, data: st.DataObject) -> tuple[int, int]:
        """A range: anything, or aligned to units or sectors."""
        size = self.world.size
        grain = data.draw(st.sampled_from([1, 512, UNIT, CHUNK]))
        start = data.draw(st.integers(0, (size - 1) // grain)) * grain
        length = data.draw(st.integers(1, max(1, (3 * CHUNK) // grain))) * grain
        return start, min(length, size - start)

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        start, length = self.draw(data)
        new = self.rng.randbytes(length)
        self.world.write(start, new)
        self.model[start : start + length] = new

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        start, length = self.draw(data)
        self.world.zero(start, length)
        self.model[start : start + length] = bytes(length)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        start, length = self.draw(data)
        assert self.world.read(start, length) == self.model[start : start + length]

    @rule(data=st.data())
    def fill_one(self, data: st.DataObject) -> None:
        chunk = data.draw(st.integers(0, self.world.volume.presence.shape.chunks - 1))
        assert self.world.volume.fill(chunk, time.monotonic() + PATIENCE) is not None

    @rule()
    def sync(self) -> None:
        self.world.volume.sync()

    @rule()
    def kill(self) -> None:
        self.world.reopen()
        assert self.world._open

    @rule()
    def fill_all(self) -> None:
        self.world.fill()
        assert self.world.volume.presence.complete
        assert self.world.target.read_bytes() == self.model

    @rule(data=st.data())
    def seek(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.world.size - 1))
        hole = self.world.volume.seek(start, os.SEEK_HOLE, 1.0)
        assert start <= hole <= self.world.size
        try:
            found = self.world.volume.seek(start, os.SEEK_DATA, 1.0)
        except OSError as error:
            assert error.errno == errno.ENXIO
            found = self.world.size
        # What is passed over is zeros.
        assert not any(self.model[start:found])
        if hole < self.world.size:
            end = (hole // UNIT + 1) * UNIT
            assert not any(self.model[hole : min(end, self.world.size)])

    @invariant()
    def present_units_are_right(self) -> None:
        if not hasattr(self, "model"):
            return
        at = 0
        raw = self.world.target.read_bytes()
        ends = (len(raw), len(raw))
        for offset, end in [*self.world.volume.presence.absent_extents(), ends]:
            assert raw[at:offset] == self.model[at:offset]
            at = end


Volume.TestCase.settings = settings(
    max_examples=examples(15, 400),
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow],
)
TestVolume = Volume.TestCase


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    rng = random.Random(3)
    world = World(tmp_path, rng.randbytes(12 * CHUNK + 100))
    world.open()
    yield world
    world.close()


def test_writes_need_no_store(world: World) -> None:
    world.weather.away = True
    world.write(0, b"a" * UNIT)
    world.write(5 * UNIT, b"b" * CHUNK)
    world.zero(20 * UNIT, 3 * UNIT)
    world.write(world.size - 100 - UNIT, b"c" * (UNIT + 100))  # the last unit is short
    world.volume.sync()
    assert world.read(0, UNIT) == b"a" * UNIT
    assert world.read(5 * UNIT, CHUNK) == b"b" * CHUNK
    assert world.read(20 * UNIT, 3 * UNIT) == bytes(3 * UNIT)
    assert world.read(world.size - 100 - UNIT, UNIT + 100) == b"c" * (UNIT + 100)
    assert world.events == []


def test_nobody_is_kept_waiting_who_said_so(world: World) -> None:
    with pytest.raises(BlockingIOError):
        world.volume.read(0, memoryview(bytearray(10)), 0.0)
    with pytest.raises(BlockingIOError):
        world.volume.write(10, memoryview(b"half a unit"), 0.0)
    with pytest.raises(BlockingIOError):
        world.volume.zero(10, CHUNK, 0.0)
    world.volume.write(UNIT, memoryview(bytes(UNIT)), 0.0)
    assert bytes(world.volume.read(UNIT, memoryview(bytearray(10)), 0.0)) == bytes(10)
    assert world.read(0, 30) == world.data[:30]


def test_a_store_that_is_away_is_an_error_after_a_while_and_heals(world: World) -> None:
    world.weather.away = True
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        world.read(0, UNIT, patience=0.5)
    assert 0.4 < time.monotonic() - started < SOON
    with pytest.raises(TimeoutError):
        world.write(100, b"half a unit", patience=0.1)
    world.weather.away = False
    assert world.read(0, UNIT) == world.data[:UNIT]
    (first, away), (second, back) = world.events
    assert (first, second) == ("store", "store")
    assert "Bad weather" in str(away["reason"])
    assert back["reason"] is None


def test_a_read_waits_out_a_short_absence(world: World) -> None:
    world.weather.away = True
    threading.Timer(0.3, setattr, (world.weather, "away", False)).start()
    assert world.read(0, UNIT) == world.data[:UNIT]


def test_many_readers_of_a_chunk_fetch_once(world: World) -> None:
    world.weather.gate = threading.Event()
    got = []
    readers = [
        threading.Thread(
            target=lambda n=n: got.append(world.read(n * 10, 10) == world.data[n * 10 :][:10])
        )
        for n in range(20)
    ]
    for reader in readers:
        reader.start()
    time.sleep(0.2)
    world.weather.names.clear()
    world.weather.gate.set()
    for reader in readers:
        reader.join()
    assert got == [True] * 20
    assert (
        len([name for name in world.weather.names if name.startswith("chunks/")]) <= 2
    )  # its index, its block


def damage(world: World, chunk: int, at: int) -> str:
    """Change a byte in the frames of a chunk, `at` (0 to 1) of its way through; its name."""
    entry = world.source.entry(chunk, time.monotonic() + PATIENCE)
    (name,) = objects_of(entry)
    raw = bytearray(world.objects.objects[name])  # type: ignore[attr-defined]
    start = 28 + 4 * 36
    raw[start + int((len(raw) - start - 1) * at)] ^= 1
    world.objects.objects[name] = bytes(raw)  # type: ignore[attr-defined]
    return str(name)


def test_damage_is_an_error_on_its_blocks_alone(world: World) -> None:
    name = damage(world, 2, 0.6)  # its third block of four
    block = CHUNK // 4
    bad = 2 * CHUNK + 2 * block
    with pytest.raises(OSError, match="damaged") as caught:
        world.read(bad, 100)
    assert caught.value.errno == errno.EIO
    assert world.read(2 * CHUNK, 2 * block) == world.data[2 * CHUNK :][: 2 * block]
    assert world.read(bad + block, block) == world.data[bad + block :][:block]
    with pytest.raises(OSError, match="damaged"):
        world.write(bad + 5, b"half a unit")
    assert world.volume.fill(2, time.monotonic() + PATIENCE) is None
    events = [fields for event, fields in world.events if event == "damaged"]
    assert [event["object"] for event in events] == [name]
    assert events[0]["ranges"] == [(bad, bad + block)]
    # What is written over it is good again.
    world.write(bad, b"n" * block)
    assert world.read(bad, block) == b"n" * block
    assert world.volume.fill(2, time.monotonic() + PATIENCE) == 0


def test_a_lost_object_is_damage(world: World) -> None:
    entry = world.source.entry(1, time.monotonic() + PATIENCE)
    assert entry is not None
    del world.objects.objects[entry.name("chunks")]  # type: ignore[attr-defined, union-attr, arg-type]
    with pytest.raises(OSError, match="damaged"):
        world.read(CHUNK, 1)
    world.fill()
    assert list(world.volume.presence.absent_extents()) == [(CHUNK, 2 * CHUNK)]
    assert world.events[-1][1]["ranges"] == [(CHUNK, 2 * CHUNK)], "all of it, as one"


def test_after_a_sync_that_failed_none_succeeds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(0, b"a" * UNIT)
    real = world.volume._data.sync

    def fail() -> None:
        monkeypatch.setattr(world.volume._data, "sync", real)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(world.volume._data, "sync", fail)
    with pytest.raises(SyncLost, match="lost"):
        world.volume.sync()
    with pytest.raises(SyncLost, match="earlier"):
        world.volume.sync()
    world.reopen()  # another process of this boot does not know better
    with pytest.raises(SyncLost, match="earlier"):
        world.volume.sync()
    with world.live.open("r+b") as live:  # after a reboot, then
        live.write(b"gone")
    world.reopen()
    world.volume.sync()
    assert world.read(0, UNIT) == world.data[:UNIT]


def test_still_means_that_nothing_becomes_present(world: World) -> None:
    world.write(0, b"x" * UNIT)
    done = threading.Event()

    def write() -> None:
        world.write(4 * CHUNK, b"y" * UNIT)
        done.set()

    with world.volume.freeze() as extents:
        writer = threading.Thread(target=write)
        writer.start()
        world.write(0, b"z" * UNIT)  # is present
        assert not done.wait(0.2)
        assert list(extents) == [(UNIT, world.size)]
    writer.join()
    assert world.read(4 * CHUNK, UNIT) == b"y" * UNIT


def test_still_keeps_nobody_waiting_but_who_writes_what_is_absent(world: World) -> None:
    """Requests as the kernel sends them, also behind many that wait for the store."""
    world.write(0, b"x" * UNIT)
    world.weather.gate = threading.Event()
    kernel = Kernel(world.volume)
    far = [kernel.send(Op.READ, read_in(chunk * CHUNK, UNIT)) for chunk in range(1, 11)]
    with world.volume.freeze():
        for _ in range(2):
            with pytest.raises(Contended):
                world.volume.write(11 * CHUNK, memoryview(bytes(UNIT)), 0.0)
        new = b"y" * UNIT
        blocked = [kernel.send(Op.WRITE, write_in(at * CHUNK, new)) for at in (3, 5, 7, 11)]
        hole = struct.pack("=QQQII", 1, 8 * CHUNK, CHUNK, 3, 0)
        blocked.append(kernel.send(Op.FALLOCATE, hole))
        started = time.monotonic()
        for _ in range(50):
            assert kernel.ask(Op.READ, read_in(0, UNIT)) == b"x" * UNIT
            kernel.ask(Op.WRITE, write_in(0, b"x" * UNIT))
        kernel.ask(Op.FSYNC, bytes(16))
        assert time.monotonic() - started < SOON
        assert not kernel.early, "what is absent stays so"
    for unique in blocked:  # the store has not answered by now
        assert kernel.answer(unique)[0] == 0
    world.weather.gate.set()
    for unique in far:
        assert kernel.answer(unique)[0] == 0
    assert kernel.ask(Op.READ, read_in(11 * CHUNK, UNIT)) == new
    kernel.close()


def test_readers_of_parts_of_a_chunk_fetch_it_together(world: World) -> None:
    world.read(CHUNK, 1)  # its segment is there
    world.weather.gate = threading.Event()
    world.weather.names.clear()
    readers = [
        threading.Thread(target=world.read, args=(2 * CHUNK + block * CHUNK // 4, 10))
        for block in (0, 1, 2, 3, 1, 2)
    ]
    for reader in readers:
        reader.start()
    wait_until(lambda: world.volume.waiting == 6)
    time.sleep(0.1)
    assert len(world.weather.names) == 2, "the first one's block, and all of it for the others"
    world.weather.gate.set()
    for reader in readers:
        reader.join()


def test_no_request_is_begun_when_patience_is_over(world: World) -> None:
    world.read(0, 1)
    world.weather.names.clear()
    with pytest.raises(TimeoutError):
        world.source.blocks(2, 0, 1, time.monotonic() - 1)
    assert world.weather.names == []


class Gated(BackingFile):
    """Local storage whose writes of `size` bytes, once told to, wait for `gate`."""

    size_of_interest = 0
    entered = threading.Event()
    gate = threading.Event()

    def write(self, offset: int, data: memoryview, keep: bool = True) -> None:
        if len(data) == self.size_of_interest:
            self.entered.set()
            assert self.gate.wait(PATIENCE)
        super().write(offset, data, keep)


@pytest.mark.parametrize("first", ["store", "write"])
def test_a_store_and_a_write_of_one_block_take_turns(tmp_path: Path, first: str) -> None:
    """Whoever comes second waits, and it is what was written that stays."""
    Gated.entered, Gated.gate = threading.Event(), threading.Event()
    world = World(tmp_path, random.Random(4).randbytes(3 * CHUNK), local=Gated)
    world.open()
    new = b"n" * (2 * UNIT)
    work = {
        "store": threading.Thread(target=world.volume.fill, args=(1, time.monotonic() + PATIENCE)),
        "write": threading.Thread(target=world.write, args=(CHUNK + UNIT, new)),
    }
    Gated.size_of_interest = CHUNK if first == "store" else len(new)
    work[first].start()
    assert Gated.entered.wait(PATIENCE)
    Gated.size_of_interest = 0
    second = "write" if first == "store" else "store"
    work[second].start()
    work[second].join(0.3)
    assert work[second].is_alive()
    Gated.gate.set()
    for thread in work.values():
        thread.join()
    expected = bytearray(world.data)
    expected[CHUNK + UNIT : CHUNK + 3 * UNIT] = new
    assert world.all() == expected
    world.close()


@pytest.mark.parametrize("chunk", range(4))
def test_a_discard_of_many_chunks_waits_for_a_store_in_any_of_them(
    tmp_path: Path, chunk: int
) -> None:
    """Else the backup's bytes would come back after it."""
    Gated.entered, Gated.gate = threading.Event(), threading.Event()
    world = World(tmp_path, random.Random(4).randbytes(5 * CHUNK), local=Gated)
    world.open()
    fill = threading.Thread(target=world.volume.fill, args=(chunk, time.monotonic() + PATIENCE))
    discard = threading.Thread(target=world.zero, args=(0, 4 * CHUNK))
    Gated.size_of_interest = CHUNK
    fill.start()
    assert Gated.entered.wait(PATIENCE)
    discard.start()
    discard.join(0.2)
    assert discard.is_alive()
    Gated.gate.set()
    for thread in (fill, discard):
        thread.join()
    assert world.all() == bytes(4 * CHUNK) + world.data[4 * CHUNK :]
    world.close()


@pytest.mark.parametrize("seed", range(3))
def test_writers_readers_and_the_fill_at_once(tmp_path: Path, seed: int) -> None:
    """Each writer has units of its own; what it wrote last is what is there."""
    data = random.Random(seed).randbytes(40 * CHUNK)
    world = World(tmp_path, data)
    world.weather.delay = 0.002
    world.weather.fails = 0.1
    world.open()
    model = bytearray(data)
    failures: list[str] = []

    def work(number: int) -> None:
        mine = random.Random(seed * 10 + number)
        for _ in range(200):
            unit = mine.randrange(len(data) // UNIT // 4) * 4 + number
            start = unit * UNIT + mine.choice([0, 0, 512, 1024])
            length = mine.choice([512, 1024, UNIT - start % UNIT])
            if mine.random() < 0.5:
                new = mine.randbytes(length)
                world.write(start, new, 60)
                model[start : start + length] = new
            elif mine.random() < 0.1:
                world.zero(start, length, 60)
                model[start : start + length] = bytes(length)
            elif world.read(start, length, 60) != model[start : start + length]:
                failures.append(f"{number}: {start} {length}")

    def fill() -> None:
        while not world.volume.presence.complete:
            world.fill()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=fill) for _ in range(2)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert failures == []
    assert world.all() == model
    assert world.target.read_bytes() == model
    world.close()
