"""A client of NBD exports and their maps.

It has the part of the protocol that QEMU's server needs: fixed newstyle negotiation, structured
replies, metadata contexts, block status (doc/proto.md of NetworkBlockDevice/nbd). libnbd
is not on PyPI, and is slower from Python than this module.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_MAGIC = b"NBDMAGIC"
_HAVE_OPTION = b"IHAVEOPT"
_OPTION_REPLY = 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _STRUCTURED_REPLY, _SET_META_CONTEXT = 7, 8, 10
_ACK, _INFO, _META_CONTEXT = 1, 3, 4
_INFO_EXPORT = 0

_REQUEST = 0x25609513
_REPLY, _SIMPLE_REPLY = 0x668E33EF, 0x67446698
_READ, _DISCONNECT, _FLUSH, _BLOCK_STATUS = 0, 2, 3, 7
_DONE = 1  # the flag of the last chunk of a reply
_DONT_FRAGMENT = 4  # the flag of a read that is answered in one chunk, whatever holes there are
_OFFSET_DATA, _STATUS = 1, 5
_ERROR = 1 << 15

#: The flag of ``base:allocation``: the range reads as zeros.
ZERO = 2
ALLOCATION = "base:allocation"

#: The longest name in the protocol, and so the longest text that is accepted.
_LONGEST_TEXT = 1 << 16
#: Bytes of one request for a map: the protocol's lengths have 32 bits.
_STEP = 1 << 30

#: Bytes of one read, which never crosses a multiple of this. QEMU copies overwritten data in
#: units of 64 KiB (or multiples). QEMU 7.2 reads a snapshot at the wrong place when a read begins
#: in a copied unit and ends beyond: hbitmap_status() returns "clean" for a range whose first part
#: is dirty. A read within one unit avoids that.
PIECE = 64 << 10
#: Requests that wait for their answers at the same time; QEMU works on 16 of a client.
_DEPTH = 16


class NbdError(OSError):
    """The server refuses, or does not speak NBD."""


class _Chunk(NamedTuple):
    cookie: int
    last: bool
    kind: int
    length: int


class Connection:
    """A connection to one export. One thread at a time.

    Attributes:
        size: the export's, in bytes.
    """

    def __init__(self, sock: socket.socket, export: str, context: str) -> None:
        """Negotiate `export` and the map `context` over the connected `sock`.

        Raises:
            OSError: it is no NBD server, or has no such export or map.
        """
        self._sock = sock
        self._cookie = 0
        self.size = 0
        magic, option, _flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != _MAGIC or option != _HAVE_OPTION:
            raise NbdError("that is no NBD server")
        sock.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        self._option(_STRUCTURED_REPLY, b"")
        name, query = export.encode(), context.encode()
        self._option(
            _SET_META_CONTEXT,
            struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query,
        )
        if self._context is None:
            raise NbdError(f"the export {export} has no map {context}")
        self._option(_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))

    _context: int | None = None

    def _option(self, option: int, data: bytes) -> None:
        self._sock.sendall(_HAVE_OPTION + struct.pack(">II", option, len(data)) + data)
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _OPTION_REPLY or length > _LONGEST_TEXT:
                raise NbdError("that is no answer to an option")
            payload = self._receive(length)
            if kind == _ACK:
                return
            if kind & 1 << 31:
                raise NbdError(f"refused: {payload.decode(errors='replace') or hex(kind)}")
            if kind == _META_CONTEXT:
                (self._context,) = struct.unpack_from(">I", payload)
            elif kind == _INFO and payload[:2] == struct.pack(">H", _INFO_EXPORT):
                (self.size,) = struct.unpack_from(">Q", payload, 2)

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(OSError):  # it may be gone
            self._request(_DISCONNECT, 0, 0)
        self._sock.close()

    def read(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            OSError: they can't be read.
        """
        pieces = _pieces(view, offset)
        waiting: dict[int, tuple[int, memoryview]] = {}
        failed: NbdError | None = None
        for at, part in itertools.islice(pieces, _DEPTH):
            waiting[self._request(_READ, at, len(part), _DONT_FRAGMENT)] = at, part
        while waiting:
            chunk = self._chunk()
            if chunk.cookie not in waiting:
                raise NbdError("that is no answer to a request")
            at, part = waiting[chunk.cookie]
            if chunk.kind == _OFFSET_DATA:
                (begin,) = struct.unpack(">Q", self._receive(8))
                if (begin, chunk.length - 8) != (at, len(part)):
                    raise NbdError("the answer has other bytes than were asked for")
                self._receive_into(part)
                waiting[chunk.cookie] = at, part[:0]
            else:
                failed = self._read_error(chunk) or failed
            if chunk.last:
                _, missing = waiting.pop(chunk.cookie)
                if missing and not failed:
                    failed = NbdError("the answer has no bytes")
                for at, part in itertools.islice(pieces, 0 if failed else 1):
                    waiting[self._request(_READ, at, len(part), _DONT_FRAGMENT)] = at, part
        if failed is not None:
            raise failed

    def flush(self) -> None:
        """Return when all writes to the disk are durable, also those of other clients.

        Raises:
            OSError: the flush failed.
        """
        self._request(_FLUSH, 0, 0)
        head = self._receive(16)
        magic, error, _cookie = struct.unpack(">IIQ", head)
        failed = None
        if magic != _SIMPLE_REPLY:  # QEMU structures only its errors
            failed = self._read_error(self._chunk(head))
        elif error:
            failed = NbdError(error, os.strerror(error))
        if failed is not None:
            raise failed

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The map's (first byte, end, flags) in `start` to `end`, one after the other.

        Raises:
            OSError: the server has no map.
        """
        at = start
        while at < end:
            for length, flags in self._status(at, min(_STEP, end - at)):
                stop = min(at + length, end)
                if at < stop:
                    yield at, stop, flags
                at = stop

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        self._request(_BLOCK_STATUS, offset, length)
        extents: list[tuple[int, int]] = []
        failed: NbdError | None = None
        last = False
        while not last:
            chunk = self._chunk()
            last = chunk.last
            if chunk.kind == _STATUS:
                raw = self._receive(chunk.length)
                context, *numbers = struct.unpack(f">{len(raw) // 4}I", raw)
                if context == self._context:
                    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
            else:
                failed = self._read_error(chunk) or failed
        if failed is not None:
            raise failed
        if not any(size for size, _ in extents):
            raise NbdError("the answer has no map")
        return extents

    # --- messages --------------------------------------------------------------------

    def _request(self, command: int, offset: int, length: int, flags: int = 0) -> int:
        """Send a request, and return the cookie that its answer will have."""
        self._cookie += 1
        self._sock.sendall(
            struct.pack(">IHHQQI", _REQUEST, flags, command, self._cookie, offset, length)
        )
        return self._cookie

    def _chunk(self, head: bytes = b"") -> _Chunk:
        """The next chunk's header; its first bytes `head` were received already."""
        head += self._receive(20 - len(head))
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", head)
        if magic != _REPLY:
            raise NbdError("that is no answer to a request")
        return _Chunk(cookie, bool(flags & _DONE), kind, length)

    def _read_error(self, chunk: _Chunk) -> NbdError | None:
        """Read the payload of a chunk; the error in it, if it is an error chunk."""
        payload = self._receive(chunk.length)
        if not chunk.kind & _ERROR:
            return None
        number, size = struct.unpack_from(">IH", payload)
        message = payload[6 : 6 + size].decode(errors="replace")
        return NbdError(number, message or os.strerror(number))

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            count = self._sock.recv_into(view)
            if not count:
                raise NbdError("the server hung up")
            view = view[count:]


def _pieces(view: memoryview, offset: int) -> Iterator[tuple[int, memoryview]]:
    """The offset and part of `view`, which begins at `offset`, of each read; see PIECE."""
    done = 0
    while done < len(view):
        at = offset + done
        stop = min(done + PIECE - at % PIECE, len(view))
        yield at, view[done:stop]
        done = stop
