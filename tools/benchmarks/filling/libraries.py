"""lunr's own FUSE protocol against a library: both pass the reads of one file on.

pyfuse3 would have to be built, with the headers of libfuse; mfusepy loads the library
as it is (Debian: libfuse3-3).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image import fuse_protocol, mount
from lunr.backup.lazy_image.backing_file import BackingFile
from tools.benchmarks.filling.table import Table

_SIZE = 64 << 20
_NAME = "volume"


class _Passing(BackingFile):
    """A local file as what :class:`protocol.File` asks for."""

    writable = True  # so that the kernel caches nothing

    def read(self, offset: int, into: memoryview, until: float = 0) -> memoryview:  # noqa: ARG002
        return super().read(offset, into)

    def write(self, offset: int, data: memoryview, until: float = 0) -> None:  # noqa: ARG002
        super().write(offset, data)

    def zero(self, offset: int, length: int, until: float = 0) -> None:  # noqa: ARG002
        super().zero(offset, length)

    def seek(self, offset: int, whence: int, until: float = 0) -> int:  # noqa: ARG002
        return super().seek(offset, whence)

    def backing(self) -> None:
        """No passthrough: the requests are what is measured."""


def _serve_own(path: Path, point: Path) -> None:
    fd = mount.mount(point, fuse_protocol.MAX_IO, read_only=False)
    fuse_protocol.Session(fd, _Passing(path), _NAME, patience=1.0).serve()


def _serve_mfusepy(path: Path, point: Path) -> None:
    import mfusepy

    fd = os.open(path, os.O_RDONLY)

    class Passing(mfusepy.Operations):  # type: ignore[misc]  # it has no types
        use_ns = True

        def getattr(self, name: str, _fh: Any = None) -> dict[str, int]:
            if name == "/":
                return {"st_mode": stat.S_IFDIR | 0o500, "st_nlink": 2}
            return {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1, "st_size": _SIZE}

        def open(self, _name: str, info: Any) -> int:
            info.direct_io = 1
            return 0

        def read(self, _name: str, size: int, offset: int, _info: Any) -> bytes:
            return os.pread(fd, size, offset)

    mfusepy.FUSE(Passing(), str(point), raw_fi=True, foreground=True, nothreads=True)


_SERVERS = {"own": _serve_own, "mfusepy": _serve_mfusepy}


def compare(folder: Path, table: Table, rounds: int) -> None:
    """Random reads of 4 KiB through both: how many a second, and what one costs the server."""
    if importlib.util.find_spec("mfusepy") is None or find_library("fuse3") is None:
        print("no library to compare with: it takes the extra bench, and libfuse3")
        return
    path = folder / "passed"
    path.write_bytes(os.urandom(_SIZE))
    rates: dict[str, list[float]] = {name: [] for name in _SERVERS}
    costs: dict[str, list[float]] = {name: [] for name in _SERVERS}
    with contextlib.ExitStack() as held:
        files = {name: held.enter_context(_served(name, path)) for name in _SERVERS}
        for _ in range(rounds):
            for name, (fd, pid) in files.items():
                before = _processor(pid)
                begun = time.monotonic()
                count = _reads(fd)
                rates[name].append(count / (time.monotonic() - begun))
                costs[name].append((_processor(pid) - before) / count)
    table.rate(
        *("4 KiB reads, own protocol", rates["own"], "mfusepy", rates["mfusepy"], None, "/s")
    )
    table.time(*("… processor time of one, own", costs["own"], "mfusepy", costs["mfusepy"], None))


@contextlib.contextmanager
def _served(name: str, path: Path) -> Iterator[tuple[int, int]]:
    """`path` through FUSE, open, and the process that serves it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as point:
        argv = [sys.executable, "-m", __name__, name, str(path), point]
        process = subprocess.Popen(argv, cwd=Path(__file__).parents[3])
        try:
            file = Path(point, _NAME)
            while not file.exists():
                if process.poll() is not None:
                    raise SystemExit(f"{name} did not mount anything")
                time.sleep(0.01)
            fd = os.open(file, os.O_RDONLY)
            try:
                yield fd, process.pid
            finally:
                os.close(fd)
        finally:
            mount.unmount(Path(point), lazy=True)
            process.wait(10)


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _reads(fd: int, seconds: float = 1.0) -> int:
    """Read here and there for so long; how often."""
    rng, count = random.Random(1), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            os.pread(fd, 4096, rng.randrange(_SIZE // 4096) * 4096)
        count += 50
    return count


if __name__ == "__main__":
    _SERVERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
