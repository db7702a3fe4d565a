"""Numbers and layouts of the kernel's FUSE protocol, by ``include/uapi/linux/fuse.h``."""

from __future__ import annotations

import struct
from enum import IntEnum

#: The protocol's version here, and the oldest minor version of a kernel that is served.
MAJOR, MINOR, OLDEST = 7, 40, 23


class Op(IntEnum):
    """``enum fuse_opcode``: the requests that are not answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46


# FUSE_* flags of INIT; those from bit 32 on travel in flags2.
ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
WANTED = (
    ASYNC_READ
    | BIG_WRITES
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | MAX_PAGES
    | INIT_EXT
    | DIRECT_IO_ALLOW_MMAP
    | PASSTHROUGH
)

# FOPEN_* flags of OPEN's answer.
DIRECT_IO = 1 << 0
KEEP_CACHE = 1 << 1
PARALLEL_DIRECT_WRITES = 1 << 6
PASSTHROUGH_OPEN = 1 << 7

FATTR_SIZE = 1 << 3
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10
#: _IOW(229, 1, struct fuse_backing_map)
IOC_BACKING_OPEN = 0x4010E501

# Host byte order, and the header lays its fields out so that none needs padding.
IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
READ_IN = struct.Struct("=QQII")  # the later fields are not used here
WRITE_IN_SIZE = 40
WRITE_OUT = struct.Struct("=II")
#: In one go: IN_HEADER and the beginning of READ_IN; OUT_HEADER and WRITE_OUT.
IO_IN = struct.Struct("=IIQQIIIHHQQI")
WRITTEN = struct.Struct("=IiQII")
SETATTR_IN = struct.Struct("=IIQQ")
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")
INTERRUPT_IN = struct.Struct("=Q")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ATTR_OUT = struct.Struct("=QII")
ENTRY_OUT = struct.Struct("=QQQQII")
OPEN_OUT = struct.Struct("=QIi")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
DIRENT = struct.Struct("=QQII")
BACKING_MAP = struct.Struct("=iIQ")
