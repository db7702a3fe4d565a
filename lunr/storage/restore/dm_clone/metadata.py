"""Which regions of a dm-clone device are there, read from its metadata.

The device is suspended: then the kernel has written them all. By
drivers/md/dm-clone-metadata.c and drivers/md/persistent-data of Linux 6.1 they are blocks of
4 KiB; the first is the superblock, which names the root of an array of 64-bit words, a bit for
each region. An array is a B-tree of blocks of such words. All is little-endian.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from lunr.common import errors
from lunr.common.extents import Extent, clip, merge, ones_in
from lunr.storage.restore.dm_clone.device import REGION, SECTOR

BLOCK = 4096

#: Checksum, flags, number of the block, uuid, magic, version, root of the space map (128 bytes),
#: sectors of a region, sectors in all, root of the array.
_SUPERBLOCK = struct.Struct("<IIQ16sQI128sQQQ")
_MAGIC = 0x8AF27F64
_VERSION = 1
#: struct node_header: checksum, flags, number, entries, most entries, size of a value.
_NODE = struct.Struct("<IIQIIII")
_INTERNAL = 1
#: struct array_block: checksum, most entries, entries, size of a value, number.
_WORDS = struct.Struct("<IIIIQ")
#: A B-tree of this depth would hold more than any disk.
_DEEPEST = 8

#: For each byte the one with all bits turned over.
_INVERTED = bytes(range(255, -1, -1))

#: Reads the block of this number.
Read = Callable[[int], bytes]


class CloneMapUnreadable(errors.LunrError):
    """What of a volume is there can't be read from {path}: {reason}"""

    code = "clone_map_unreadable"


def absent(path: Path) -> list[Extent]:
    """The extents, in order, that are not there by the metadata on the device `path`.

    Raises:
        CloneMapUnreadable: they are not what the kernel writes.
        OSError: the device fails.
    """
    # Past the page cache: the kernel writes to the device below it.
    file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:

            def read(number: int) -> bytes:
                return buffer[: os.preadv(file, [buffer], number * BLOCK)]

            return list(absent_in(read))
    except (ValueError, OverflowError, struct.error) as error:
        raise CloneMapUnreadable(path=path, reason=str(error)) from error
    finally:
        os.close(file)


def absent_in(read: Read) -> Iterator[Extent]:
    """The same of the metadata that `read` reads.

    Raises:
        ValueError: they are not what the kernel writes.
    """
    *_, magic, version, _, region, sectors, root = _SUPERBLOCK.unpack_from(read(0))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"magic {magic:#x}, version {version}")
    if region * SECTOR != REGION:
        raise ValueError(f"regions of {region} sectors")
    size = sectors * SECTOR
    bits = b"".join(_words(read, root, _DEEPEST))
    if len(bits) * 8 * REGION < size:
        raise ValueError(f"{len(bits)} bytes for {size}")
    absent = ones_in(bits.translate(_INVERTED))
    return clip(merge(Extent(first * REGION, end * REGION) for first, end in absent), size)


def _words(read: Read, number: int, depth: int) -> Iterator[bytes]:
    """The words of the array below the node `number`, in order."""
    if not depth:
        raise ValueError("the tree has no end")
    node = read(number)
    _, flags, itself, entries, most, size, _ = _NODE.unpack_from(node)
    first = _NODE.size + most * 8  # the keys come first
    if itself != number or size != 8 or not entries <= most or first + most * 8 > BLOCK:
        raise ValueError(f"block {number} is no node")
    for below in struct.unpack_from(f"<{entries}Q", node, first):
        if flags & _INTERNAL:
            yield from _words(read, below, depth - 1)
        else:
            block = read(below)
            _, _, words, width, itself = _WORDS.unpack_from(block)
            end = _WORDS.size + words * 8
            if itself != below or width != 8 or end > BLOCK:
                raise ValueError(f"block {below} holds no words")
            yield block[_WORDS.size : end]
