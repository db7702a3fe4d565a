"""The background fill: when it works, when it does not, and what it tells."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.lazy_image.background_fill import BackgroundFill, Mode
from lunr.backup.lazy_image.presence import UNIT
from tests.support.waiting import PATIENCE, wait_until
from tests.unit.backup.lazy_image.support import CHUNK, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, random.Random(5).randbytes(40 * CHUNK))
    world.open()
    yield world
    world.close()


class Running:
    """A fill in a thread."""

    def __init__(self, world: World, mode: Mode, **options: int) -> None:
        self.fill = BackgroundFill(world.volume, world.report, mode, **options)
        self.result: list[bool] = []
        self.thread = threading.Thread(target=lambda: self.result.append(self.fill.run()))

    def __enter__(self) -> BackgroundFill:
        self.thread.start()
        return self.fill

    def __exit__(self, *exc_info: object) -> None:
        self.fill.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def told(world: World, event: str) -> list[dict[str, object]]:
    return [fields for name, fields in world.events if name == event]


def is_used_without_a_pause(world: World, offset: int) -> bool:
    """Use the volume for longer than a lazy fill waits, unless the machine keeps us from it."""
    pauses = [0.0]
    until = time.monotonic() + 1.5
    while (last := time.monotonic()) < until:
        world.read(offset, 1)
        time.sleep(0.02)
        pauses.append(time.monotonic() - last)
    return max(pauses) < 0.4  # between two reads may be two of them


def present(world: World) -> int:
    return world.volume.presence.present


def test_eager_fills_and_ends(world: World) -> None:
    running = Running(world, Mode.EAGER)
    with running:
        running.thread.join(PATIENCE)
    assert running.result == [True]
    assert world.target.read_bytes() == world.data
    last = told(world, "progress")[-1]
    assert last["done"] == last["total"] == world.size
    assert last["remaining"] in (0, None)
    assert world.events[-1][0] == "filled"
    world.live.unlink()  # and it is on disk
    assert world.reopen().presence.complete


def test_never_waits_to_be_told(world: World) -> None:
    with Running(world, Mode.NEVER) as fill:
        world.read(7 * CHUNK, 1)  # only its block is fetched
        world.read(9 * CHUNK, CHUNK)
        time.sleep(0.3)
        assert present(world) == 1
        assert list(world.volume.presence.absent_extents())[1][0] == 7 * CHUNK + 2 * UNIT
        fill.apply_settings(mode=Mode.EAGER)
        wait_until(lambda: told(world, "filled"))


def test_stopped_it_says_that_it_is_not_done(world: World) -> None:
    running = Running(world, Mode.NEVER)
    with running:
        time.sleep(0.1)
    assert running.result == [False]
    assert not told(world, "filled")


def test_lazy_leaves_a_volume_alone_that_is_used(world: World) -> None:
    world.write(0, bytes(UNIT))
    with Running(world, Mode.LAZY):
        if is_used_without_a_pause(world, 0):
            assert present(world) == 0
        wait_until(lambda: told(world, "filled"))


def test_the_limit_is_kept_and_can_be_lifted(world: World) -> None:
    started = time.monotonic()
    with Running(world, Mode.EAGER, concurrency=2, limit=10 * CHUNK) as fill:
        wait_until(lambda: present(world) >= 8)
        assert time.monotonic() - started > 0.4  # two chunks come at once
        fill.apply_settings(limit=CHUNK // 100)
        fill.apply_settings(limit=0)  # or it would take an hour
        wait_until(lambda: told(world, "filled"))


def test_nothing_is_begun_while_somebody_waits(world: World) -> None:
    world.read(0, 1)  # the segment is there
    world.weather.names.clear()
    world.weather.gate = threading.Event()
    reader = threading.Thread(target=world.read, args=(20 * CHUNK, 1))
    reader.start()
    wait_until(lambda: world.weather.names and world.volume.waiting)
    world.weather.names.clear()
    with Running(world, Mode.EAGER):
        time.sleep(0.3)
        assert world.weather.names == []
        world.weather.gate.set()
        reader.join()
        wait_until(lambda: told(world, "filled"))


def test_a_reader_that_goes_on_is_read_ahead_of(world: World) -> None:
    with Running(world, Mode.NEVER):
        for chunk in (10, 11):
            world.read(chunk * CHUNK, CHUNK)
        wait_until(lambda: present(world) == 4)  # 12 and 13 too
        world.read(14 * CHUNK, CHUNK)
        wait_until(lambda: present(world) == 9)  # and 15 to 18
        for chunk in (30, 5, 25):  # one that jumps is not
            world.read(chunk * CHUNK, CHUNK)
        time.sleep(0.2)
        assert present(world) == 12


def test_the_eager_fill_goes_on_where_it_is_read(world: World) -> None:
    world.weather.delay = 0.02
    with Running(world, Mode.EAGER, concurrency=1):
        world.read(30 * CHUNK, CHUNK)
        wait_until(lambda: world.volume.presence.has(30 * CHUNK, 36 * CHUNK))
        assert not world.volume.presence.has(0, 30 * CHUNK)


def test_it_goes_on_when_the_store_is_back(world: World) -> None:
    world.weather.away = True
    with Running(world, Mode.EAGER):
        wait_until(lambda: told(world, "store"))
        time.sleep(0.2)
        assert present(world) == 0
        world.weather.away = False
        wait_until(lambda: told(world, "filled"))
    assert [fields["reason"] is None for fields in told(world, "store")] == [False, True]


def test_a_full_disk_is_told_and_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_offset: int, _data: memoryview, keep: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lunr.backup.lazy_image.background_fill._PAUSE", 0.05)
    real = world.volume._data.write
    monkeypatch.setattr(world.volume._data, "write", full)
    with Running(world, Mode.EAGER):
        wait_until(lambda: told(world, "trouble"))
        assert "no room" in str(told(world, "trouble")[0]["reason"])
        monkeypatch.setattr(world.volume._data, "write", real)
        wait_until(lambda: told(world, "filled"))
    assert told(world, "trouble")[-1]["reason"] is None
    assert world.target.read_bytes() == world.data


def test_what_is_damaged_is_left_and_tried_again_when_told(world: World) -> None:
    entry = world.source.entry(3, time.monotonic() + PATIENCE)
    name = entry.name("chunks")  # type: ignore[union-attr, arg-type]
    kept = world.objects.objects.pop(name)  # type: ignore[attr-defined]
    with Running(world, Mode.EAGER) as fill:
        wait_until(lambda: present(world) == 39)
        wait_until(lambda: [seen["damaged"] for seen in told(world, "progress")][-1:] == [1])
        assert told(world, "damaged")[0]["object"] == name
        world.objects.objects[name] = kept  # type: ignore[attr-defined]
        fill.apply_settings(mode=Mode.EAGER)
        wait_until(lambda: told(world, "filled"))


def test_what_was_read_ahead_of_and_is_there_does_not_count(world: World) -> None:
    """A lazy fill stays away from a volume that is used, whoever has read on."""
    with Running(world, Mode.LAZY):
        for chunk in (10, 11):
            world.read(chunk * CHUNK, CHUNK)
        wait_until(lambda: present(world) >= 4)  # 12 and 13 are read ahead
        if is_used_without_a_pause(world, 10 * CHUNK):
            assert present(world) == 4
        wait_until(lambda: told(world, "filled"))


def test_a_reader_that_goes_on_does_not_wait_again(world: World) -> None:
    waited: list[int] = []
    with Running(world, Mode.NEVER):
        missed = world.volume.on_miss

        def note(chunk: int) -> None:
            waited.append(chunk)
            missed(chunk)

        world.volume.on_miss = note
        for chunk in range(40):
            assert world.read(chunk * CHUNK, CHUNK) == world.data[chunk * CHUNK :][:CHUNK]
            if 1 <= chunk < 39:  # it is slower than the store
                following = (chunk + 1) * CHUNK
                wait_until(lambda at=following: world.volume.presence.has(at, at + CHUNK))
    assert waited == [0, 1]


def test_after_a_sync_that_failed_it_rests_until_new_settings_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(5, "lost")

    monkeypatch.setattr("lunr.backup.lazy_image.background_fill._PAUSE", 0.01)
    monkeypatch.setattr(world.volume._data, "sync", fail)
    with Running(world, Mode.EAGER) as fill:
        wait_until(lambda: told(world, "given_up"))
        time.sleep(0.2)
        assert len(told(world, "given_up")) == 1, "it does not try on and on"
        fill.apply_settings(mode=Mode.EAGER)
        wait_until(lambda: len(told(world, "given_up")) == 3)
    reasons = [event["reason"] for event in told(world, "given_up")]
    assert [reason is None for reason in reasons] == [False, True, False]
    assert not told(world, "filled")


def test_a_defect_is_told_and_can_be_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_chunk: int, _until: float) -> None:
        raise ZeroDivisionError("a defect")

    real = world.source.chunk
    monkeypatch.setattr(world.source, "chunk", broken)
    with Running(world, Mode.EAGER) as fill:
        wait_until(lambda: told(world, "given_up"))
        assert "a defect" in str(told(world, "given_up")[0]["reason"])
        monkeypatch.setattr(world.source, "chunk", real)
        fill.apply_settings(mode=Mode.EAGER)
        wait_until(lambda: told(world, "filled"))


def test_what_fails_after_new_settings_does_not_undo_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ordering, ordered = threading.Semaphore(0), threading.Event(), threading.Event()
    real = world.source.chunk

    def slow_and_broken(chunk: int, until: float) -> object:
        is_of_before = not ordering.is_set()
        begun.release()
        assert ordered.wait(PATIENCE)
        if is_of_before:
            raise ZeroDivisionError("a defect of before the settings")
        return real(chunk, until)

    monkeypatch.setattr(world.source, "chunk", slow_and_broken)
    with Running(world, Mode.EAGER) as fill:
        assert begun.acquire(timeout=PATIENCE)
        ordering.set()
        fill.apply_settings(mode=Mode.EAGER)
        ordered.set()
        wait_until(lambda: told(world, "filled"))
    assert not told(world, "given_up")


def test_damage_that_was_written_over_is_told_to_be_over(world: World) -> None:
    entry = world.source.entry(3, time.monotonic() + PATIENCE)
    del world.objects.objects[entry.name("chunks")]  # type: ignore[attr-defined, union-attr, arg-type]
    first, end = 3 * CHUNK, 4 * CHUNK
    with Running(world, Mode.NEVER):
        with pytest.raises(OSError, match="damaged"):
            world.read(first, 1)
        with pytest.raises(OSError, match="damaged"):
            world.read(first + 6 * UNIT, 1)
        assert told(world, "damaged")[-1]["ranges"] == [
            (first, first + 2 * UNIT),
            (first + 6 * UNIT, end),
        ]
        world.write(first, bytes(UNIT))
        wait_until(lambda: told(world, "damaged")[-1]["ranges"][0][0] == first + UNIT)  # type: ignore[index]
        world.write(first, bytes(CHUNK))
        wait_until(lambda: told(world, "damaged")[-1]["ranges"] == [])
