"""Images and volumes through the kernel's FUSE."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.services import need_fuse
from tests.support.waiting import PATIENCE, wait_until
from tests.system.backup.lazy_image.mounted import MIB, Place, Worker, opened

CHUNK = 4 * MIB


@pytest.fixture(scope="module", name="content")
def _content() -> bytes:
    rng = random.Random(1)
    return rng.randbytes(9 * MIB) + bytes(7 * MIB) + rng.randbytes(5 * MIB + 512)


@pytest.fixture
def place(tmp_path: Path, content: bytes) -> Iterator[Place]:
    need_fuse()
    place = Place(tmp_path, content)
    yield place
    place.clean()


def fallocate(path: Path, mode: str, offset: int, length: int) -> None:
    subprocess.run(["fallocate", mode, "-o", str(offset), "-l", str(length), str(path)], check=True)


# --- the image -------------------------------------------------------------------------


def test_an_image_is_the_backup(place: Place, content: bytes) -> None:
    worker = place.worker()
    mounted = worker.wait_for("mounted")
    assert mounted["path"] == str(place.file)
    assert mounted["seconds"] < 1
    assert os.listdir(place.point) == ["volume"]
    assert place.file.stat().st_size == len(content)
    assert os.statvfs(place.point).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_RDONLY) == (
        os.ST_NOSUID | os.ST_NODEV | os.ST_RDONLY
    )
    assert place.file.read_bytes() == content
    with pytest.raises(OSError, match="Read-only"):
        os.open(place.file, os.O_RDWR)
    assert worker.unmount() == {"filled": False}
    assert os.listdir(place.point) == []


def test_an_image_has_the_holes_of_the_backup(place: Place) -> None:
    worker = place.worker()
    worker.wait_for("mounted")
    with opened(place.file, os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 3 * CHUNK
        assert os.lseek(fd, 3 * CHUNK, os.SEEK_DATA) == 4 * CHUNK
    worker.unmount()


def test_a_small_read_fetches_little(place: Place, content: bytes) -> None:
    """Counted by what the worker reads from the store, a folder."""
    worker = place.worker()
    worker.wait_for("mounted")

    def fetched() -> int:
        counters = Path(f"/proc/{worker.process.pid}/io").read_text()
        return int(dict(line.split(": ") for line in counters.splitlines())["rchar"])

    before = fetched()
    with opened(place.file, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(fd, 4096, 5 * MIB) == content[5 * MIB : 5 * MIB + 4096]
    assert fetched() - before < 200 << 10
    worker.unmount()


def test_the_end_of_standard_input_unmounts(place: Place) -> None:
    worker = place.worker()
    worker.wait_for("mounted")
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0
    assert os.listdir(place.point) == []
    assert worker.process.stdout is not None
    assert worker.process.stderr is not None
    worker.process.stdout.close()
    worker.process.stderr.close()


def test_a_file_in_use_is_not_unmounted_but_may_be_left(place: Place, content: bytes) -> None:
    worker = place.worker()
    worker.wait_for("mounted")
    with opened(place.file, os.O_RDONLY) as fd:
        worker.tell("unmount")
        assert "in use" in worker.wait_for("busy")["reason"]
        worker.tell("detach")
        wait_until(lambda: os.listdir(place.point) == [])
        assert os.pread(fd, 100, MIB) == content[MIB : MIB + 100]
        assert worker.process.poll() is None
    assert worker.end()[0] == 0


def test_unmounted_by_anyone_it_ends(place: Place) -> None:
    worker = place.worker()
    worker.wait_for("mounted")
    subprocess.run(["umount", place.point], check=True)
    assert worker.end()[0] == 0


def test_a_dead_mount_is_taken_away_and_a_live_one_is_not(place: Place, content: bytes) -> None:
    first = place.worker()
    first.wait_for("mounted")
    second = place.worker()
    code, failed, _ = second.end()
    assert (code, failed and failed["code"]) == (1, "mount_failed")
    assert place.file.read_bytes() == content
    first.kill()
    with pytest.raises(OSError, match="not connected"):
        place.point.stat()
    third = place.worker()
    third.wait_for("mounted")
    assert place.file.read_bytes() == content
    third.unmount()


def test_failures_tell_their_code(place: Place) -> None:
    def failure(worker: Worker) -> str:
        code, failed, _ = worker.end()
        assert code == 1
        assert failed is not None
        return str(failed["code"])

    assert failure(Worker()) == "bad_request"
    assert failure(place.worker("mow")) == "bad_request"
    assert failure(place.volume(fill="fast")) == "bad_request"
    os.truncate(place.target, 4096)
    assert failure(place.volume()) == "bad_request"
    os.truncate(place.target, len(place.data))
    assert failure(place.volume(size=4096)) == "bad_request"
    (place.folder / "map").write_bytes(b"x" * 512)
    assert failure(place.volume()) == "map_corrupt"
    shutil.rmtree(place.store)
    assert failure(place.worker()) == "backup_missing"


# --- the volume ------------------------------------------------------------------------


def test_a_volume_is_used_while_it_fills(place: Place, content: bytes) -> None:
    model = bytearray(content.ljust(len(content) + CHUNK, b"\0"))
    worker = place.volume(size=len(model))
    worker.wait_for("mounted")
    rng = random.Random(2)
    with opened(place.file) as fd:
        for _ in range(300):
            offset = rng.randrange(len(model) // 512) * 512
            length = min(rng.choice([512, 4096, 65536, 2 * MIB]), len(model) - offset)
            if rng.random() < 0.6:
                data = rng.randbytes(length)
                assert os.pwrite(fd, data, offset) == length
                model[offset : offset + length] = data
            else:
                assert os.pread(fd, length, offset) == model[offset : offset + length]
        fallocate(place.file, "--punch-hole", 3 * MIB + 100, 9 * MIB)
        model[3 * MIB + 100 : 12 * MIB + 100] = bytes(9 * MIB)
        fallocate(place.file, "--zero-range", 20 * MIB, 5000)
        model[20 * MIB : 20 * MIB + 5000] = bytes(5000)
        os.fsync(fd)
        worker.tell("fill eager")
        worker.wait_for("filled")
        assert os.pread(fd, len(model), 0) == model[:0] + model[: len(os.pread(fd, len(model), 0))]
    assert place.file.read_bytes() == model
    assert worker.unmount() == {"filled": True}
    assert place.target.read_bytes() == model


def test_progress_is_told(place: Place) -> None:
    worker = place.volume(fill="eager", limit=2 * MIB)
    worker.wait_for("mounted")
    seen = [worker.wait_for("progress") for _ in range(3)]
    assert [event["done"] for event in seen] == sorted(event["done"] for event in seen)
    assert {"done", "total", "rate", "remaining", "mode", "damaged"} <= seen[0].keys()
    assert seen[0]["done"] < seen[0]["total"]
    worker.tell("limit 0")
    worker.wait_for("filled")
    last = [event for event in worker.events if event["event"] == "progress"][-1]
    assert last["done"] == last["total"]
    worker.unmount()


def test_a_filled_volume_is_passed_through(place: Place, content: bytes) -> None:
    worker = place.volume(fill="eager")
    worker.wait_for("mounted")
    with opened(place.file) as early:
        worker.wait_for("filled")
        with opened(place.file) as late:
            os.pwrite(late, b"late", 0)
            assert os.pread(early, 4, 0) == b"late"
            os.pwrite(early, b"early", 8192)
            assert os.pread(late, 5, 8192) == b"early"
            os.fsync(late)
            before = Path(f"/proc/{worker.process.pid}/io").read_text()
            for offset in range(0, len(content), MIB):
                os.pread(late, MIB, offset)
            moved = _rchar(Path(f"/proc/{worker.process.pid}/io").read_text()) - _rchar(before)
            if moved > MIB:
                pytest.skip("needs a kernel with FUSE_PASSTHROUGH (6.9)")
    worker.unmount()


def _rchar(io: str) -> int:
    return int(io.split("rchar: ")[1].split()[0])


def test_two_volumes_of_one_backup(place: Place, content: bytes, tmp_path: Path) -> None:
    other = Place.__new__(Place)
    other.__dict__.update(place.__dict__)
    other.folder = tmp_path / "other"
    other.point = other.folder / "mount"
    other.point.mkdir(parents=True)
    other.file, other.target = other.point / "volume", other.folder / "target"
    first, second = place.volume(fill="eager"), other.volume(fill="eager")
    for worker in (first, second):
        worker.wait_for("mounted")
    with opened(place.file) as one, opened(other.file) as two:
        os.pwrite(one, b"one", MIB)
        os.pwrite(two, b"two", MIB)
    for worker in (first, second):
        worker.wait_for("filled")
        worker.unmount()
    assert place.target.read_bytes() == content[:MIB] + b"one" + content[MIB + 3 :]
    assert other.target.read_bytes() == content[:MIB] + b"two" + content[MIB + 3 :]


def test_a_volume_is_served_by_one(place: Place, tmp_path: Path) -> None:
    worker = place.volume()
    worker.wait_for("mounted")
    place.point = tmp_path / "elsewhere"
    place.point.mkdir()
    code, failed, _ = place.volume().end()
    assert (code, failed and failed["code"]) == (1, "map_in_use")
    worker.unmount()


def test_the_store_away(place: Place, content: bytes) -> None:
    worker = place.volume(patience=10 * PATIENCE)
    worker.wait_for("mounted")
    with opened(place.file) as fd:
        os.pread(fd, CHUNK, 0)
        with place.away():
            readers = [threading.Thread(target=_is_cut_off, args=(fd,)) for _ in range(12)]
            for reader in readers:
                reader.start()
            for number in range(200):  # those go on meanwhile
                os.pwrite(fd, b"new!" * 1024, 8 * MIB + number * 4096)
                assert os.pread(fd, 4096, 4096 * number) == content[4096 * number :][:4096]
            os.fsync(fd)
            assert all(reader.is_alive() for reader in readers)
            worker.kill()
            for reader in readers:
                reader.join()
            worker = place.volume(patience=0.3)  # also without the store
            worker.wait_for("mounted")
            with opened(place.file) as again:
                _fails(again, 21 * MIB)
        with opened(place.file) as again:
            assert os.pread(again, 512, 20 * MIB) == content[20 * MIB :][:512]
            assert os.pread(again, 4, 8 * MIB + 199 * 4096) == b"new!"
    worker.unmount()


def _is_cut_off(fd: int) -> None:
    """Read what only the store has, until the process that serves the file is killed."""
    with pytest.raises(OSError, match=r"abort|not connected"):
        os.pread(fd, 4096, 20 * MIB)


def _fails(fd: int, offset: int) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught:
        os.pread(fd, 4096, offset)
    assert caught.value.errno == errno.EIO


def test_one_who_waits_for_the_store_can_be_killed(place: Place) -> None:
    worker = place.volume(patience=30.0)
    worker.wait_for("mounted")
    with place.away():
        reader = subprocess.Popen(["dd", f"if={place.file}", "of=/dev/null", "bs=4k", "count=1"])
        worker.wait_for("store")
        reader.kill()
        assert reader.wait(5) == -9
    worker.unmount()


def test_a_corrupt_object_is_told_and_the_rest_is_filled(place: Place, content: bytes) -> None:
    objects = [path for path in place.store.rglob("chunks/*/*") if path.is_file()]
    bad = max(objects, key=lambda path: path.stat().st_size)
    raw = bytearray(bad.read_bytes())
    raw[-1] ^= 1
    bad.write_bytes(raw)
    worker = place.volume(fill="eager")
    worker.wait_for("mounted")
    event = worker.wait_for("damaged")
    assert bad.name in event["object"]
    ((offset, end),) = event["ranges"]
    with opened(place.file) as fd:
        _fails(fd, offset)
        wait_until(lambda: worker.wait_for("progress")["damaged"] == 1)
        present = worker.events[-1]["done"]
        assert present == len(content) - CHUNK
        good = offset - 4096
        assert os.pread(fd, 4096, good) == content[good : good + 4096]
        os.pwrite(fd, b"n" * (end - offset), offset)
        worker.tell("fill eager")
        worker.wait_for("filled")
    worker.unmount()


def test_unfetched_extents_and_a_snapshot(place: Place, content: bytes) -> None:
    worker = place.volume()
    worker.wait_for("mounted")
    with opened(place.file) as fd:
        os.pwrite(fd, b"w" * 4096, 8 * MIB)
        os.pread(fd, 4 * MIB, 0)
        worker.tell("still")
        worker.wait_for("unfetched")
        worker.tell("still")  # of another, who does not know of the first
        told = {}
        while not told.keys() >= {"gone", "unfetched"}:
            event = worker.next()
            assert event is not None
            told[event["event"]] = event
        assert told["gone"]["in_time"] is False
        extents = told["unfetched"]["extents"]
        assert extents == [[4 * MIB, 4 * MIB], [8 * MIB + 4096, len(content) - 8 * MIB - 4096]]
        writer = threading.Thread(target=os.pwrite, args=(fd, b"x" * 4096, 5 * MIB))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        snapshot = place.target.read_bytes()
        worker.tell("go")
        assert worker.wait_for("gone")["in_time"] is True
        writer.join(5)
    assert snapshot[:CHUNK] == content[:CHUNK]
    assert snapshot[8 * MIB :][:4096] == b"w" * 4096
    worker.unmount()


def test_it_outlives_its_parent_and_is_spoken_to_again(place: Place, content: bytes) -> None:
    control = place.folder / "control"
    worker = place.volume(control=str(control), patience=5)
    worker.wait_for("mounted")
    assert control.stat().st_mode & 0o777 == 0o600
    for pipe in (worker.process.stdin, worker.process.stdout):
        assert pipe is not None
        pipe.close()
    with opened(place.file) as fd:
        assert os.pread(fd, 100, 0) == content[:100]
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(20)
        talk.connect(str(control))
        with talk.makefile("rw") as lines:
            assert "mounted" in [json.loads(lines.readline())["event"] for _ in range(2)]
            for order in ("nonsense", "limit x", "fill fast"):
                lines.write(f"{order}\n")
                lines.flush()
                while (event := json.loads(lines.readline()))["event"] == "progress":
                    pass
                assert (event["event"], event["code"]) == ("refused", "bad_request")
            lines.write("fill eager\n")
            lines.flush()
            while json.loads(lines.readline())["event"] != "filled":
                pass
            lines.write("unmount\n")
            lines.flush()
            while json.loads(lines.readline())["event"] != "done":
                pass
    assert worker.process.wait(10) == 0
    assert worker.process.stderr is not None
    worker.process.stderr.close()
    assert not control.exists()
    assert place.target.read_bytes() == content


@pytest.mark.parametrize("is_zero", [True, False])
def test_killed_time_and_again_in_use(place: Place, content: bytes, is_zero: bool) -> None:
    """What was acknowledged is there, synced or not; what was under way is old or new."""
    rng = random.Random(is_zero)
    model = bytearray(content)
    place.target.write_bytes((b"\0" if is_zero else b"\xee") * len(content))
    for round_ in range(4):
        worker = place.volume(fill="eager", limit=4 * MIB, target_is_zero=is_zero)
        worker.wait_for("mounted")
        timer = threading.Timer(rng.uniform(0.0, 0.25), worker.process.kill)
        with opened(place.file) as fd:
            timer.start()
            try:
                # Once it is filled and passed through, the kernel goes on without the process.
                while worker.process.poll() is None:
                    offset = rng.randrange(len(model) // 4096) * 4096
                    new = rng.randbytes(4096)
                    if rng.random() < 0.5:
                        assert os.pread(fd, 4096, offset) == model[offset : offset + 4096]
                    else:
                        os.pwrite(fd, new, offset)
                        model[offset : offset + 4096] = new
                        new = b""
            except OSError as error:
                assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), round_
        timer.join()
        worker.end()
        worker = place.volume(target_is_zero=is_zero)
        worker.wait_for("mounted")
        with opened(place.file) as fd:
            there = os.pread(fd, 4096, offset)
            assert there in (model[offset : offset + 4096], new)
            model[offset : offset + 4096] = there
        worker.unmount()
    worker = place.volume(fill="eager", target_is_zero=is_zero)
    worker.wait_for("filled")
    worker.unmount()
    assert place.target.read_bytes() == model


def test_a_block_device_fills_too(
    place: Place, content: bytes, loop: Callable[[Path], Path]
) -> None:
    backing = place.folder / "backing"
    backing.write_bytes(b"\xee" * (len(content) + 4096 - len(content) % 4096))
    place.target = loop(backing)
    worker = place.volume(target_is_zero=False, fill="eager")
    worker.wait_for("mounted")
    with opened(place.file) as fd:
        os.pwrite(fd, b"block", MIB)
        fallocate(place.file, "--punch-hole", 17 * MIB, MIB)
        worker.wait_for("filled")
        os.fsync(fd)
    with opened(place.file) as late:  # can't be passed through, and works
        assert os.pread(late, 5, MIB) == b"block"
    worker.unmount()
    model = bytearray(content)
    model[MIB : MIB + 5] = b"block"
    model[17 * MIB : 18 * MIB] = bytes(MIB)
    assert backing.read_bytes()[: len(model)] == model


@pytest.fixture
def loop() -> Iterator[Callable[[Path], Path]]:
    devices: list[str] = []

    def attach(file: Path) -> Path:
        done = subprocess.run(
            ["losetup", "-f", "--show", file], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs a loop device: {done.stderr.strip()}")
        devices.append(done.stdout.strip())
        return Path(devices[-1])

    yield attach
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


def test_locks_of_the_file_are_the_kernels(place: Place) -> None:
    """flock(2) needs no request; programs that lock what they open work."""
    worker = place.volume()
    worker.wait_for("mounted")
    with opened(place.file) as one, opened(place.file) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    worker.unmount()
