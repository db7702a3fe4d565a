"""The kernel's FUSE protocol, without a library, for a file system that is one file.

The protocol is that of ``include/uapi/linux/fuse.h`` (version 7.40; kernels from
7.23, Linux 3.15, are served) and of the kernel's
``Documentation/filesystems/fuse/``. A request is one read(2) from /dev/fuse, its
answer one writev(2). The file system has a root (node 1) with one file (node 2)
whose size never changes.

Threads read requests and answer at once those that need no waiting. A request that must wait
(the file raises BlockingIOError) goes to a pool of threads: requests that wait for the store
don't delay the others. Slow local requests (syncs, discards) have a pool of their own, and so
have requests that wait for other requests.

A file that is complete names its backing file. READs and WRITEs then go directly to that, with
as little work for each as possible.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from lunr.backup.lazy_image import fuse_wire

logger = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview

#: Most bytes of one READ or WRITE.
MAX_IO = 1 << 20
_PAGE = 4096
ROOT, NODE = 1, 2
#: Seconds that the kernel may cache names and attributes: they do not change.
_FOREVER = 3600

_BUFFER = MAX_IO + _PAGE
_WRITE_DATA = fuse_wire.IN_HEADER.size + fuse_wire.WRITE_IN_SIZE
_WAITERS = 8
_SYNCERS = 2
_TURN_TAKERS = 4
#: Plain numbers: the lookup of an enum's member would double the time of a comparison.
_READ, _WRITE = int(fuse_wire.Op.READ), int(fuse_wire.Op.WRITE)


class Contended(BlockingIOError):
    """The request must wait for another request, and not for the store."""


class File(Protocol):
    """The file that is served. Any thread may call it, several at once.

    A method may wait for the store until the time `until` (of time.monotonic). It raises
    TimeoutError if it waited in vain, and BlockingIOError if it must not wait (`until` 0).
    The caller of the system call gets every OSError.
    """

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def writable(self) -> bool:
        """Whether it may be written; else the kernel may cache its bytes for ever."""

    def read(self, offset: int, into: memoryview, until: float) -> Bytes:
        """As many bytes as `into` has, from `offset` on; in `into` or in another buffer."""

    def write(self, offset: int, data: memoryview, until: float) -> None:
        """Write all of `data`, which is reused afterwards."""

    def zero(self, offset: int, length: int, until: float) -> None:
        """Make a range read as zeros, and free its room if possible."""

    def sync(self) -> None:
        """Return when all writes answered before survive a power cut."""

    def seek(self, offset: int, whence: int, until: float) -> int:
        """The first offset from `offset` on with data (SEEK_DATA) or in a hole (SEEK_HOLE)."""

    def used(self) -> int:
        """The bytes that it takes on disk."""

    def backing(self) -> int | None:
        """The descriptor that may be read and written instead of this file; None: not yet."""


class Session:
    """One mount: answers the requests on `fd` from `file`.

    Attributes:
        version: the kernel's protocol, (major, minor), after its INIT.
        passthrough: whether the kernel can do FUSE_PASSTHROUGH, after its INIT.
        requests: READs, WRITEs, FSYNCs and FALLOCATEs so far.
        under_way: how many of these wait, or take their time.
    """

    def __init__(self, fd: int, file: File, name: str, patience: float, threads: int = 2) -> None:
        """Serve `file` as `name`.

        Args:
            fd: /dev/fuse, given to mount(2). :meth:`serve` leaves it open: a late answer must not
                go to another file with the same number.
            file: the file to serve.
            name: its name in the root.
            patience: seconds that a request may wait.
            threads: that read requests.
        """
        self.version = (0, 0)
        self.passthrough = False
        self.requests = 0
        self.under_way = 0
        self._fd = fd
        self._file = file
        self._name = name.encode()
        self._patience = patience
        self._threads = threads
        self._now = int(time.time())
        self._backing_id = 0
        self._read_flags = os.RWF_NOWAIT
        self._lock = threading.Lock()
        #: Waiting READs, by their unique number: an INTERRUPT may end them.
        self._waiting: set[int] = set()
        #: INTERRUPTs that overtook their request.
        self._early: deque[int] = deque(maxlen=64)
        self._waiters = ThreadPoolExecutor(_WAITERS, "fuse-wait")
        self._syncers = ThreadPoolExecutor(_SYNCERS, "fuse-sync")
        self._turn_takers = ThreadPoolExecutor(_TURN_TAKERS, "fuse-turn")
        self._handlers: dict[int, Callable[[_Request], Bytes | None]] = {
            fuse_wire.Op.READ: self._read,
            fuse_wire.Op.WRITE: self._write,
            fuse_wire.Op.LOOKUP: self._lookup,
            fuse_wire.Op.GETATTR: self._getattr,
            fuse_wire.Op.SETATTR: self._setattr,
            fuse_wire.Op.OPEN: self._open,
            fuse_wire.Op.STATFS: self._statfs,
            fuse_wire.Op.RELEASE: _nothing,
            fuse_wire.Op.FSYNC: self._sync,
            fuse_wire.Op.INIT: self._init,
            fuse_wire.Op.OPENDIR: _opendir,
            fuse_wire.Op.READDIR: self._readdir,
            fuse_wire.Op.RELEASEDIR: _nothing,
            fuse_wire.Op.FSYNCDIR: _nothing,
            fuse_wire.Op.DESTROY: _nothing,
            fuse_wire.Op.FALLOCATE: self._fallocate,
            fuse_wire.Op.LSEEK: self._lseek,
        }

    def serve(self) -> None:
        """Answer until the file system is unmounted and no process has the file open."""
        readers = [
            threading.Thread(
                target=self._answer, args=(number > 0,), name=f"fuse-{number}", daemon=True
            )
            for number in range(self._threads)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        # Requests that still wait have no process to answer to.
        self._waiters.shutdown(wait=False, cancel_futures=True)
        self._turn_takers.shutdown(wait=False, cancel_futures=True)
        self._syncers.shutdown(wait=True)

    def _answer(self, is_further: bool) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        room = memoryview(bytearray(fuse_wire.OUT_HEADER.size + MAX_IO))
        scratch = room[fuse_wire.OUT_HEADER.size :]
        backing = None
        # With requests as cheap as those of `_pass_on`, a second thread would cost more than it
        # saves.
        while not (is_further and backing is not None) and (length := self._receive(buffer)):
            if backing is None:
                backing = self._file.backing()
            if backing is None or not self._pass_on(backing, buffer, room):
                self._handle(_Request(buffer[:length], scratch, 0.0))

    def _receive(self, buffer: memoryview) -> int:
        """Read a request into `buffer`, and return its length; 0: no more will come."""
        while True:
            try:
                length = os.readv(self._fd, (buffer,))
            except OSError as error:
                # ENOENT: the request was interrupted before it was read.
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno != errno.ENODEV:
                    logger.error("Reading from /dev/fuse failed: %s", error)  # noqa: TRY400
                return 0
            return length if length >= fuse_wire.IN_HEADER.size else 0

    def _pass_on(self, backing: int, message: memoryview, room: memoryview) -> bool:
        """Do a READ or WRITE on the file `backing`; False: it is another request, or it failed.

        The caller repeats a request that failed or was done in part.

        Args:
            backing: the descriptor of the backing file.
            message: a request; bytes behind it are ignored.
            room: the buffer for the answer.
        """
        size, op, unique, _, _, _, _, _, _, _, offset, length = fuse_wire.IO_IN.unpack_from(message)
        if op not in (_READ, _WRITE) or offset + length > self._file.size or length > MAX_IO:
            return False
        try:
            if op == _READ:
                end = fuse_wire.OUT_HEADER.size + length
                into = room[fuse_wire.OUT_HEADER.size : end]
                if os.preadv(backing, (into,), offset, self._read_flags) != length:
                    return False
                fuse_wire.OUT_HEADER.pack_into(room, 0, end, 0, unique)
                answer: Bytes = room[:end]
            else:
                if (
                    os.pwrite(backing, message[_WRITE_DATA : _WRITE_DATA + length], offset)
                    != length
                ):
                    return False
                answer = fuse_wire.WRITTEN.pack(fuse_wire.WRITTEN.size, 0, unique, length, 0)
        except BlockingIOError as error:  # the disk is slow: other requests go first
            self._defer(_Request(message[:size], None, 0.0), Contended(error.errno))
            return True
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._read_flags = 0
            return False
        self.requests += 1
        self._send((answer,))
        return True

    def _handle(self, request: _Request) -> None:
        op, unique = request.op, request.unique
        if op in (
            fuse_wire.Op.READ,
            fuse_wire.Op.WRITE,
            fuse_wire.Op.FSYNC,
            fuse_wire.Op.FALLOCATE,
        ):
            self.requests += 1
        if op in (fuse_wire.Op.FORGET, fuse_wire.Op.BATCH_FORGET):  # these get no answer
            return
        if op == fuse_wire.Op.INTERRUPT:
            self._interrupt(fuse_wire.INTERRUPT_IN.unpack_from(request.body)[0])
            return
        if op in (fuse_wire.Op.FSYNC, fuse_wire.Op.FALLOCATE):
            self._hand_to(self._syncers, request.kept(0.0))
            return
        try:
            self._reply(unique, self._result(request))
        except BlockingIOError as error:
            self._defer(request, error)
        except OSError as error:
            self._refuse(unique, error)

    def _result(self, request: _Request) -> Bytes | None:
        handler = self._handlers.get(request.op)
        if handler is None:
            raise OSError(errno.ENOSYS, "not a request of this file system")
        try:
            return handler(request)
        except OSError:
            raise
        except Exception as error:  # without an answer the caller would hang for ever
            logger.exception("A request %d failed with an unexpected error.", request.op)
            raise OSError(errno.EIO, str(error)) from error

    # --- requests that wait --------------------------------------------------------

    def _hand_to(self, pool: ThreadPoolExecutor, request: _Request) -> None:
        with self._lock:
            self.under_way += 1
        pool.submit(self._finish, request)

    def _defer(self, request: _Request, why: BlockingIOError) -> None:
        unique = request.unique
        if request.op == fuse_wire.Op.READ:
            with self._lock:
                if unique in self._early:
                    self._early.remove(unique)
                    gone = True
                else:
                    self._waiting.add(unique)
                    gone = False
            if gone:
                self._refuse(unique, InterruptedError(errno.EINTR, "interrupted"))
                return
        pool = self._turn_takers if isinstance(why, Contended) else self._waiters
        self._hand_to(pool, request.kept(time.monotonic() + self._patience))

    def _finish(self, request: _Request) -> None:
        try:
            answer = self._result(request)
        except BlockingIOError as error:
            self._defer(request, error)
        except OSError as error:
            if self._is_awaited(request):
                self._refuse(request.unique, error)
        else:
            if self._is_awaited(request):
                self._reply(request.unique, answer)
        with self._lock:
            self.under_way -= 1

    def _is_awaited(self, request: _Request) -> bool:
        if request.op != fuse_wire.Op.READ:
            return True
        with self._lock:
            if request.unique not in self._waiting:
                return False
            self._waiting.remove(request.unique)
            return True

    def _interrupt(self, unique: int) -> None:
        """End a waiting READ now. A WRITE goes on: half of it may be done."""
        with self._lock:
            waits = unique in self._waiting
            if waits:
                self._waiting.remove(unique)
            else:
                self._early.append(unique)
        if waits:
            self._refuse(unique, InterruptedError(errno.EINTR, "interrupted"))

    def _reply(self, unique: int, data: Bytes | None) -> None:
        if not data:
            self._send([fuse_wire.OUT_HEADER.pack(fuse_wire.OUT_HEADER.size, 0, unique)])
        else:
            self._send(
                [fuse_wire.OUT_HEADER.pack(fuse_wire.OUT_HEADER.size + len(data), 0, unique), data]
            )

    def _refuse(self, unique: int, error: OSError) -> None:
        # A request that waited in vain is an I/O error for the reader.
        number = errno.EIO if isinstance(error, TimeoutError) else error.errno or errno.EIO
        self._send([fuse_wire.OUT_HEADER.pack(fuse_wire.OUT_HEADER.size, -number, unique)])

    def _send(self, parts: Sequence[Bytes]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the caller was killed; ENODEV, EBADF: unmounted meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF, errno.EPIPE):
                logger.error("An answer could not be given: %s", error)  # noqa: TRY400

    # --- the file ------------------------------------------------------------------

    def _read(self, request: _Request) -> Bytes:
        _, offset, length, _ = fuse_wire.READ_IN.unpack_from(request.body)
        length = min(length, MAX_IO, max(0, self._file.size - offset))
        if not length:
            return b""
        return self._file.read(offset, request.scratch(length), request.until)

    def _write(self, request: _Request) -> Bytes:
        _, offset, length, _ = fuse_wire.READ_IN.unpack_from(request.body)
        # Like a disk, the file can't grow.
        data = request.body[fuse_wire.WRITE_IN_SIZE : fuse_wire.WRITE_IN_SIZE + length]
        data = data[: max(0, self._file.size - offset)]
        if not self._file.writable:
            raise OSError(errno.EROFS, "read-only")
        if length and not data:
            raise OSError(errno.ENOSPC, "beyond the end")
        if data:
            self._file.write(offset, data, request.until)
        return fuse_wire.WRITE_OUT.pack(len(data), 0)

    def _sync(self, _request: _Request) -> None:
        self._file.sync()

    def _fallocate(self, request: _Request) -> None:
        _, offset, length, mode, _ = fuse_wire.FALLOCATE_IN.unpack_from(request.body)
        if mode & ~fuse_wire.FALLOC_KEEP_SIZE not in (
            fuse_wire.FALLOC_PUNCH_HOLE,
            fuse_wire.FALLOC_ZERO_RANGE,
        ):
            raise OSError(errno.EOPNOTSUPP, "only holes and zeros")
        if not self._file.writable:
            raise OSError(errno.EROFS, "read-only")
        length = min(length, self._file.size - offset)
        if length > 0:
            self._file.zero(offset, length, request.until)

    def _lseek(self, request: _Request) -> Bytes:
        _, offset, whence, _ = fuse_wire.LSEEK_IN.unpack_from(request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "the kernel does the others itself")
        if offset >= self._file.size:
            raise OSError(errno.ENXIO, "beyond the end")
        return fuse_wire.LSEEK_OUT.pack(self._file.seek(offset, whence, request.until))

    def _open(self, request: _Request) -> Bytes:
        if request.node != NODE:
            raise OSError(errno.EISDIR, "a directory")
        if not self._file.writable:
            return fuse_wire.OPEN_OUT.pack(1, fuse_wire.KEEP_CACHE, 0)
        backing = self._backing()
        if backing:
            return fuse_wire.OPEN_OUT.pack(
                1, fuse_wire.PASSTHROUGH_OPEN | fuse_wire.PARALLEL_DIRECT_WRITES, backing
            )
        return fuse_wire.OPEN_OUT.pack(1, fuse_wire.DIRECT_IO | fuse_wire.PARALLEL_DIRECT_WRITES, 0)

    def _backing(self) -> int:
        """The kernel's id of the backing file, or 0 if there is none (yet)."""
        fd = self._file.backing() if self.passthrough else None
        if fd is None:
            return 0
        with self._lock:
            if not self._backing_id:
                try:
                    argument = bytearray(fuse_wire.BACKING_MAP.pack(fd, 0, 0))
                    self._backing_id = fcntl.ioctl(self._fd, fuse_wire.IOC_BACKING_OPEN, argument)
                except OSError as error:  # a block device, or a stacked file system
                    logger.info("The kernel can't pass requests through: %s", error)
                    self.passthrough = False
            return self._backing_id

    # --- the file system around it ---------------------------------------------------

    def _init(self, request: _Request) -> Bytes:
        major, minor, readahead, flags = fuse_wire.INIT_IN.unpack_from(request.body)
        if major > fuse_wire.MAJOR:  # the kernel will ask again, with ours
            return fuse_wire.INIT_OUT.pack(
                fuse_wire.MAJOR, fuse_wire.MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
            )
        if (major, minor) < (fuse_wire.MAJOR, fuse_wire.OLDEST):
            raise OSError(errno.EPROTO, "the kernel's FUSE is too old")
        if flags & fuse_wire.INIT_EXT and len(request.body) >= fuse_wire.INIT_IN.size + 4:
            flags |= (
                int.from_bytes(
                    request.body[fuse_wire.INIT_IN.size : fuse_wire.INIT_IN.size + 4], "little"
                )
                << 32
            )
        self.version = (major, minor)
        flags &= fuse_wire.WANTED
        self.passthrough = bool(flags & fuse_wire.PASSTHROUGH)
        return fuse_wire.INIT_OUT.pack(
            *(
                fuse_wire.MAJOR,
                min(minor, fuse_wire.MINOR),
                max(readahead, MAX_IO),
                flags & 0xFFFFFFFF,
            ),
            *(64, 48),  # background requests, and the number that counts as congestion
            # Without MAX_PAGES requests have at most 32 pages, regardless of this value.
            *(MAX_IO, 1, MAX_IO // _PAGE, 0),
            *(flags >> 32, 1 if self.passthrough else 0),  # what lies below is not stacked
        )

    def _lookup(self, request: _Request) -> Bytes:
        name = bytes(request.body).split(b"\0", 1)[0]
        if request.node != ROOT or name != self._name:
            raise OSError(errno.ENOENT, "no such name")
        return fuse_wire.ENTRY_OUT.pack(NODE, 0, _FOREVER, _FOREVER, 0, 0) + self._attr(NODE)

    def _getattr(self, request: _Request) -> Bytes:
        # The size on disk changes: the kernel must ask each time.
        return fuse_wire.ATTR_OUT.pack(0, 0, 0) + self._attr(request.node)

    def _setattr(self, request: _Request) -> Bytes:
        valid, _, _, size = fuse_wire.SETATTR_IN.unpack_from(request.body)
        if request.node != NODE or (valid & fuse_wire.FATTR_SIZE and size != self._file.size):
            raise OSError(errno.EPERM, "its size does not change")
        return fuse_wire.ATTR_OUT.pack(0, 0, 0) + self._attr(NODE)

    def _attr(self, node: int) -> bytes:
        if node == NODE:
            size, used, links = self._file.size, self._file.used() // 512, 1
            mode = stat.S_IFREG | (0o600 if self._file.writable else 0o400)
        else:
            size, used, links, mode = 0, 0, 2, stat.S_IFDIR | 0o500
        now = self._now
        owner = os.geteuid(), os.getegid()
        return fuse_wire.ATTR.pack(
            *(node, size, used, now, now, now, 0, 0, 0, mode, links), *owner, 0, _PAGE, 0
        )

    def _statfs(self, _request: _Request) -> Bytes:
        blocks = -(-self._file.size // _PAGE)
        return fuse_wire.STATFS_OUT.pack(blocks, 0, 0, 1, 0, _PAGE, 255, _PAGE, 0)

    def _readdir(self, request: _Request) -> Bytes:
        _, offset, length, _ = fuse_wire.READ_IN.unpack_from(request.body)
        entries = [(ROOT, stat.S_IFDIR, b"."), (ROOT, stat.S_IFDIR, b"..")]
        entries.append((NODE, stat.S_IFREG, self._name))
        answer = b""
        for number, (node, kind, name) in enumerate(entries[offset:], offset + 1):
            packed = fuse_wire.DIRENT.pack(node, number, len(name), kind >> 12) + name
            packed = packed.ljust(-(-len(packed) // 8) * 8, b"\0")
            if len(answer) + len(packed) > length:
                break
            answer += packed
        return answer


class _Request:
    """One message of the kernel: its header, and a view of the rest."""

    __slots__ = ("_scratch", "body", "node", "op", "unique", "until")

    def __init__(self, message: memoryview, scratch: memoryview | None, until: float) -> None:
        _, self.op, self.unique, self.node, *_ = fuse_wire.IN_HEADER.unpack_from(message)
        self.body = message[fuse_wire.IN_HEADER.size :]
        self.until = until
        self._scratch = scratch

    def scratch(self, length: int) -> memoryview:
        """A buffer for the answer."""
        return self._scratch[:length] if self._scratch else memoryview(bytearray(length))

    def kept(self, until: float) -> _Request:
        """A copy that outlives its buffer, and may wait until `until`."""
        request = _Request.__new__(_Request)
        request.op, request.unique, request.node = self.op, self.unique, self.node
        request.body, request.until, request._scratch = memoryview(bytes(self.body)), until, None
        return request


def _nothing(_request: _Request) -> None:
    """Answer with success."""


def _opendir(_request: _Request) -> Bytes:
    return fuse_wire.OPEN_OUT.pack(0, 0, 0)
