"""The protocol, spoken over a socket that stands for /dev/fuse: packets are messages, as there."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.lazy_image import fuse_wire
from lunr.backup.lazy_image.fuse_protocol import File, Session
from lunr.backup.lazy_image.fuse_wire import Op
from tests.support.waiting import PATIENCE

HEADER = struct.Struct("=IIQQIIIHH")
ANSWER = struct.Struct("=IiQ")


class Disk:
    """A file in memory. Bytes from 1 MiB on are far away: they wait for `here`."""

    def __init__(self, size: int = (4 << 20) + 512) -> None:
        self.data = bytearray(os.urandom(size))
        self.writable = True
        self.here = threading.Event()
        self.asked: list[tuple[str, int, int]] = []
        self.behind: int | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def _wait(self, end: int, until: float) -> None:
        if end <= 1 << 20 or self.here.is_set():
            return
        if not until:
            raise BlockingIOError
        if not self.here.wait(until - time.monotonic()):
            raise TimeoutError

    def read(self, offset: int, into: memoryview, until: float) -> memoryview:
        self._wait(offset + len(into), until)
        self.asked.append(("read", offset, len(into)))
        into[:] = self.data[offset : offset + len(into)]
        return into

    def write(self, offset: int, data: memoryview, until: float) -> None:
        self._wait(offset + len(data), until)
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, until: float) -> None:
        self._wait(offset + length, until)
        self.asked.append(("zero", offset, length))
        self.data[offset : offset + length] = bytes(length)

    def sync(self) -> None:
        self.asked.append(("sync", 0, 0))

    def seek(self, offset: int, whence: int, until: float) -> int:
        if offset == 13:
            raise ZeroDivisionError
        return offset if whence == os.SEEK_DATA else self.size

    def used(self) -> int:
        return 5 * 512

    def backing(self) -> int | None:
        return self.behind


class Kernel:
    """The other end."""

    def __init__(self, disk: File, patience: float = 5.0) -> None:
        self.socket, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (self.socket, ours):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.socket.settimeout(PATIENCE)
        self.ours = ours.detach()
        self.session = Session(self.ours, disk, "volume", patience)
        self.thread = threading.Thread(target=self.session.serve)
        self.thread.start()
        self.unique = 0
        self.early: dict[int, tuple[int, bytes]] = {}

    def send(self, op: int, body: bytes = b"", node: int = 2) -> int:
        self.unique += 2
        length = HEADER.size + len(body)
        self.socket.send(HEADER.pack(length, op, self.unique, node, 0, 0, 1, 0, 0) + body)
        return self.unique

    def answer(self, unique: int) -> tuple[int, bytes]:
        """(errno, body) of the answer to `unique`; those to others are kept."""
        while unique not in self.early:
            raw = self.socket.recv(2 << 20)
            length, error, number = ANSWER.unpack_from(raw)
            assert length == len(raw)
            assert number not in self.early, "answered twice"
            self.early[number] = (-error, raw[ANSWER.size :])
        return self.early.pop(unique)

    def ask(self, op: int, body: bytes = b"", node: int = 2) -> bytes:
        error, answer = self.answer(self.send(op, body, node))
        assert error == 0, os.strerror(error)
        return answer

    def fail(self, op: int, body: bytes = b"", node: int = 2) -> int:
        error, answer = self.answer(self.send(op, body, node))
        assert answer == b""
        return error

    def silent(self) -> None:
        self.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            self.socket.recv(1 << 20)
        self.socket.settimeout(PATIENCE)

    def init(self, minor: int = 40, flags: int = (1 << 64) - 1, size: int = 64) -> tuple[int, ...]:
        body = struct.pack("=IIIII", 7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
        answer = self.ask(Op.INIT, body.ljust(size, b"\0")[:size], 0)
        assert len(answer) == 64
        return struct.unpack_from("=IIIIHHIIHHII", answer)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        os.fstat(self.ours)  # a late answer goes nowhere else
        os.close(self.ours)
        self.socket.close()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def kernel(disk: Disk) -> Iterator[Kernel]:
    kernel = Kernel(disk)
    yield kernel
    disk.here.set()
    kernel.close()


def read_in(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 1, offset, size, 0, 0, 0, 0)


def write_in(offset: int, data: bytes) -> bytes:
    return struct.pack("=QQIIQII", 1, offset, len(data), 0, 0, 0, 0) + data


def test_init_takes_what_the_kernel_has(kernel: Kernel) -> None:
    major, minor, _, flags, _, _, max_write, _, max_pages, _, flags2, depth = kernel.init(45)
    assert (major, minor) == (7, 40)
    assert flags | flags2 << 32 == fuse_wire.WANTED
    assert (max_write, max_pages, depth) == (1 << 20, 256, 1)
    assert kernel.session.passthrough


@pytest.mark.parametrize(("minor", "size"), [(23, 16), (28, 16), (35, 16), (36, 64), (39, 64)])
def test_init_of_older_kernels(kernel: Kernel, minor: int, size: int) -> None:
    has = (1 << 30) - 1 if minor < 36 else (1 << 37) - 1  # passthrough came with 7.40
    _, ours, _, flags, *_, flags2, depth = kernel.init(minor, has, size)
    assert ours == minor
    assert (flags | flags2 << 32) & ~has == 0
    assert depth == 0
    assert not kernel.session.passthrough


def test_init_of_kernels_that_are_too_old_or_too_new(kernel: Kernel) -> None:
    assert kernel.fail(Op.INIT, struct.pack("=IIII", 7, 22, 0, 0), 0) == errno.EPROTO
    assert kernel.fail(Op.INIT, struct.pack("=IIII", 6, 99, 0, 0), 0) == errno.EPROTO
    # It asks again with our major version.
    assert struct.unpack_from("=I", kernel.ask(Op.INIT, struct.pack("=IIII", 8, 1, 0, 0), 0)) == (
        7,
    )


def test_the_file_is_found_and_nothing_else(kernel: Kernel, disk: Disk) -> None:
    kernel.init()
    entry = kernel.ask(Op.LOOKUP, b"volume\0", 1)
    node, _, valid, _, _, _ = struct.unpack_from("=QQQQII", entry)
    assert (node, len(entry)) == (2, 128)
    assert valid > 0
    assert kernel.fail(Op.LOOKUP, b"other\0", 1) == errno.ENOENT
    assert kernel.fail(Op.LOOKUP, b"volume\0", 2) == errno.ENOENT
    attr = struct.unpack("=QQQQQQIIIIIIIIII", kernel.ask(Op.GETATTR, bytes(16))[16:])
    assert attr[:3] == (2, disk.size, 5)
    assert stat.S_ISREG(attr[9])
    root = struct.unpack("=QQQQQQIIIIIIIIII", kernel.ask(Op.GETATTR, bytes(16), 1)[16:])
    assert stat.S_ISDIR(root[9])


def test_the_folder_is_listed_in_parts(kernel: Kernel) -> None:
    names = []
    offset = 0
    while entries := kernel.ask(Op.READDIR, read_in(offset, 64), 1):
        at = 0
        while at < len(entries):
            _, offset, length, _ = struct.unpack_from("=QQII", entries, at)
            names.append(entries[at + 24 : at + 24 + length])
            at += (24 + length + 7) // 8 * 8
    assert names == [b".", b"..", b"volume"]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4096), (1, 1), (511, 3), (0, 1 << 20), (4 << 20, 512), (4095, 8194)]
)
def test_reads_of_any_size(kernel: Kernel, disk: Disk, offset: int, size: int) -> None:
    disk.here.set()
    assert kernel.ask(Op.READ, read_in(offset, size)) == disk.data[offset : offset + size]


def test_reads_past_the_end_are_short(kernel: Kernel, disk: Disk) -> None:
    disk.here.set()
    assert kernel.ask(Op.READ, read_in(disk.size - 100, 4096)) == disk.data[-100:]
    assert kernel.ask(Op.READ, read_in(disk.size, 4096)) == b""
    assert kernel.ask(Op.READ, read_in(disk.size + 10000, 1)) == b""


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (3, 5), (512, 512 << 10), (7, 4097)])
def test_writes_of_any_size(kernel: Kernel, disk: Disk, offset: int, size: int) -> None:
    data = os.urandom(size)
    assert struct.unpack("=II", kernel.ask(Op.WRITE, write_in(offset, data))) == (size, 0)
    assert disk.data[offset : offset + size] == data


def test_writes_end_where_the_file_does(kernel: Kernel, disk: Disk) -> None:
    disk.here.set()
    size = disk.size
    answer = kernel.ask(Op.WRITE, write_in(size - 10, b"x" * 100))
    assert struct.unpack("=II", answer) == (10, 0)
    assert disk.size == size
    assert kernel.fail(Op.WRITE, write_in(size, b"x")) == errno.ENOSPC
    disk.writable = False
    assert kernel.fail(Op.WRITE, write_in(0, b"x")) == errno.EROFS


def test_what_waits_keeps_nobody_else_waiting(kernel: Kernel, disk: Disk) -> None:
    far = [kernel.send(Op.READ, read_in((1 << 20) + 4096 * n, 4096)) for n in range(40)]
    write = kernel.send(Op.WRITE, write_in(2 << 20, b"far away"))
    for _ in range(20):
        assert kernel.ask(Op.READ, read_in(0, 10)) == disk.data[:10]
        kernel.ask(Op.WRITE, write_in(100, b"near"))
        kernel.ask(Op.FSYNC, bytes(16))
    disk.here.set()
    for number, unique in enumerate(far):
        start = (1 << 20) + 4096 * number
        assert kernel.answer(unique) == (0, disk.data[start : start + 4096])
    assert kernel.answer(write)[0] == 0
    assert disk.data[2 << 20 :].startswith(b"far away")


def test_what_is_whole_is_read_and_written_behind_it(
    kernel: Kernel, disk: Disk, tmp_path: Path
) -> None:
    path = tmp_path / "behind"
    path.write_bytes(disk.data)
    disk.asked.clear()
    with path.open("r+b", buffering=0) as behind:
        disk.behind = behind.fileno()
        for offset, size in ((0, 4096), (3, 5), (2 << 20, 1 << 20), (disk.size - 512, 512)):
            data = os.urandom(size)
            assert kernel.ask(Op.READ, read_in(offset, size)) == disk.data[offset:][:size]
            answer = kernel.ask(Op.WRITE, write_in(offset, data))
            assert struct.unpack("=II", answer) == (size, 0)
            disk.data[offset : offset + size] = data
            assert kernel.ask(Op.READ, read_in(offset, size)) == data
            assert path.read_bytes() == disk.data
        assert disk.asked == []
        assert kernel.session.requests == 12
        # All else goes on as before.
        disk.here.set()
        assert kernel.ask(Op.READ, read_in(disk.size - 100, 4096)) == disk.data[-100:]
        assert kernel.fail(Op.WRITE, write_in(disk.size, b"x")) == errno.ENOSPC
        kernel.ask(Op.FSYNC, bytes(16))
        assert kernel.fail(39) == errno.ENOSYS
        # What fails is done again by the file, which says how.
        disk.behind, pipe = None, os.pipe()
        os.dup2(pipe[0], behind.fileno())
        assert kernel.ask(Op.READ, read_in(0, 4096)) == disk.data[:4096]
        kernel.ask(Op.WRITE, write_in(0, b"again"))
        assert disk.data.startswith(b"again")
        for end in pipe:
            os.close(end)


def test_patience_has_an_end(disk: Disk) -> None:
    kernel = Kernel(disk, patience=0.1)
    assert kernel.fail(Op.READ, read_in(2 << 20, 4096)) == errno.EIO
    disk.here.set()
    assert kernel.ask(Op.READ, read_in(2 << 20, 16)) == disk.data[2 << 20 : (2 << 20) + 16]
    kernel.close()


def test_an_interrupt_ends_a_read_that_waits_once(kernel: Kernel, disk: Disk) -> None:
    waits = kernel.send(Op.READ, read_in(2 << 20, 4096))
    time.sleep(0.1)
    kernel.send(Op.INTERRUPT, struct.pack("=Q", waits))
    assert kernel.answer(waits) == (errno.EINTR, b"")
    disk.here.set()
    kernel.silent()  # the read that was interrupted is not answered again, nor is the interrupt


def test_an_interrupt_may_come_before_its_read(kernel: Kernel) -> None:
    kernel.send(Op.INTERRUPT, struct.pack("=Q", kernel.unique + 4))
    time.sleep(0.1)
    waits = kernel.send(Op.READ, read_in(2 << 20, 4096))
    assert kernel.answer(waits) == (errno.EINTR, b"")


def test_an_interrupted_write_is_done(kernel: Kernel, disk: Disk) -> None:
    waits = kernel.send(Op.WRITE, write_in(2 << 20, b"done"))
    time.sleep(0.1)
    kernel.send(Op.INTERRUPT, struct.pack("=Q", waits))
    kernel.silent()
    disk.here.set()
    assert kernel.answer(waits)[0] == 0
    assert disk.data[2 << 20 :].startswith(b"done")


def test_forgets_are_not_answered(kernel: Kernel) -> None:
    kernel.send(Op.FORGET, struct.pack("=Q", 1))
    kernel.send(Op.BATCH_FORGET, struct.pack("=IIQQ", 1, 0, 2, 1), 0)
    kernel.silent()


@pytest.mark.parametrize("op", [5, 9, 10, 21, 22, 35, 37, 39, 44, 51, 52, 4096, 1 << 31])
def test_unknown_requests_are_told_so(kernel: Kernel, op: int) -> None:
    assert kernel.fail(op, b"anything at all\0") == errno.ENOSYS


def test_holes_and_zeros(kernel: Kernel, disk: Disk) -> None:
    def fallocate(offset: int, length: int, mode: int) -> bytes:
        return struct.pack("=QQQII", 1, offset, length, mode, 0)

    for mode in (0x03, 0x10, 0x11):
        kernel.ask(Op.WRITE, write_in(0, b"x" * 8192))
        kernel.ask(Op.FALLOCATE, fallocate(100, 5000, mode))
        assert disk.data[:8192] == b"x" * 100 + bytes(5000) + b"x" * 3092
    disk.here.set()
    kernel.ask(Op.FALLOCATE, fallocate(disk.size - 10, 1 << 40, 0x03))
    assert disk.asked[-1] == ("zero", disk.size - 10, 10)
    kernel.ask(Op.FALLOCATE, fallocate(disk.size, 1 << 40, 0x03))
    for mode in (0, 1, 0x08, 0x20, 0x40):
        assert kernel.fail(Op.FALLOCATE, fallocate(0, 4096, mode)) == errno.EOPNOTSUPP


def test_a_hole_far_away_waits(kernel: Kernel, disk: Disk) -> None:
    unique = kernel.send(Op.FALLOCATE, struct.pack("=QQQII", 1, 2 << 20, 4096, 3, 0))
    kernel.silent()
    disk.here.set()
    assert kernel.answer(unique) == (0, b"")


def test_seek(kernel: Kernel, disk: Disk) -> None:
    def lseek(offset: int, whence: int) -> bytes:
        return struct.pack("=QQII", 1, offset, whence, 0)

    assert struct.unpack("=Q", kernel.ask(Op.LSEEK, lseek(5, os.SEEK_DATA))) == (5,)
    assert struct.unpack("=Q", kernel.ask(Op.LSEEK, lseek(5, os.SEEK_HOLE))) == (disk.size,)
    assert kernel.fail(Op.LSEEK, lseek(disk.size, os.SEEK_DATA)) == errno.ENXIO
    assert kernel.fail(Op.LSEEK, lseek(0, os.SEEK_END)) == errno.EINVAL


def test_a_mistake_in_the_file_is_an_io_error_and_no_more(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    assert kernel.fail(Op.LSEEK, struct.pack("=QQII", 1, 13, os.SEEK_DATA, 0)) == errno.EIO
    assert "ZeroDivisionError" in caplog.text
    assert kernel.fail(Op.READ, b"short") == errno.EIO
    kernel.ask(Op.GETATTR, bytes(16))


def test_its_size_does_not_change(kernel: Kernel, disk: Disk) -> None:
    def setattr_(valid: int, size: int) -> bytes:
        return struct.pack("=IIQQ", valid, 0, 1, size).ljust(88, b"\0")

    assert kernel.fail(Op.SETATTR, setattr_(1 << 3, 0)) == errno.EPERM
    assert len(kernel.ask(Op.SETATTR, setattr_(1 << 3, disk.size))) == 104
    assert len(kernel.ask(Op.SETATTR, setattr_(1 << 5, 0))) == 104


def test_opens(kernel: Kernel, disk: Disk) -> None:
    kernel.init()
    assert kernel.fail(Op.OPEN, bytes(8), 1) == errno.EISDIR
    _, flags, _ = struct.unpack("=QIi", kernel.ask(Op.OPEN, bytes(8)))
    assert flags == fuse_wire.DIRECT_IO | fuse_wire.PARALLEL_DIRECT_WRITES
    disk.writable = False
    _, flags, _ = struct.unpack("=QIi", kernel.ask(Op.OPEN, bytes(8)))
    assert flags == fuse_wire.KEEP_CACHE
    for op in (Op.RELEASE, Op.RELEASEDIR, Op.FSYNCDIR, Op.DESTROY):
        assert kernel.ask(op, bytes(24)) == b""
    assert len(kernel.ask(Op.OPENDIR, bytes(8), 1)) == 16


def test_statfs_has_the_size(kernel: Kernel, disk: Disk) -> None:
    blocks, free, _, files, _, bsize, *_ = struct.unpack_from(
        "=QQQQQIIII", kernel.ask(Op.STATFS, b"", 1)
    )
    assert (blocks * bsize - disk.size) in range(bsize)
    assert (free, files) == (0, 1)


@pytest.mark.skipif(
    not Path("/usr/include/linux/fuse.h").exists(), reason="needs linux/fuse.h (linux-libc-dev)"
)
def test_the_numbers_are_the_kernels() -> None:
    """Names and numbers of requests, against the header."""
    header = Path("/usr/include/linux/fuse.h").read_text()
    for op in Op:
        assert re.search(rf"^\tFUSE_{op.name}\s*= {op.value},", header, re.MULTILINE), op
    for name, value in (
        ("FUSE_ASYNC_READ", fuse_wire.ASYNC_READ),
        ("FUSE_BIG_WRITES", fuse_wire.BIG_WRITES),
        ("FUSE_ASYNC_DIO", fuse_wire.ASYNC_DIO),
        ("FUSE_PARALLEL_DIROPS", fuse_wire.PARALLEL_DIROPS),
        ("FUSE_MAX_PAGES", fuse_wire.MAX_PAGES),
        ("FUSE_INIT_EXT", fuse_wire.INIT_EXT),
        ("FOPEN_DIRECT_IO", fuse_wire.DIRECT_IO),
        ("FOPEN_KEEP_CACHE", fuse_wire.KEEP_CACHE),
        ("FOPEN_PARALLEL_DIRECT_WRITES", fuse_wire.PARALLEL_DIRECT_WRITES),
        ("FATTR_SIZE", fuse_wire.FATTR_SIZE),
    ):
        bit = value.bit_length() - 1
        assert re.search(rf"^#define {name}\s+\(1 << {bit}\)", header, re.MULTILINE), name
