"""A worker with a real mount, and the volume in it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lunr.backup.keys import derive
from lunr.backup.lazy_image import mount
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores import open_store

KEY = "5a" * 32
MIB = 1 << 20


class Place:
    """A folder with a store, a backup `b1` of `data`, and where to mount it."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.folder = folder
        self.data = data
        self.point = folder / "mount"
        self.point.mkdir()
        self.file = self.point / "volume"
        self.target = folder / "target"
        self.store = folder / "store"
        source = folder / "source"
        source.write_bytes(data)
        with FileSource(source) as opened:
            save(self.repository(), opened, Backup("b1", "v1", "2026-11-23T00:00:00Z"))

    def repository(self) -> Repository:
        store = open_store(f"files:{self.store}", "account")
        return Repository(store, derive.derive(bytes.fromhex(KEY), "account"))

    def worker(self, task: str = "image", **fields: Any) -> Worker:
        return Worker(
            task=task,
            store={"url": f"files:{self.store}", "options": {}},
            key=KEY,
            repository="account",
            backup_id="b1",
            mountpoint=str(self.point),
            **fields,
        )

    def volume(self, size: int | None = None, **fields: Any) -> Worker:
        """A volume that fills; the target is made when it is not there."""
        size = size or len(self.data)
        if not self.target.exists():
            with self.target.open("wb") as file:
                file.truncate(size)
        given = {"target_is_zero": True, "fill": "never", **fields}
        return self.worker(
            "volume",
            target=str(self.target),
            size_bytes=size,
            map=str(self.folder / "map"),
            live=str(self.folder / "live"),
            **given,
        )

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The store is away."""
        with away(self.store):
            yield

    def clean(self) -> None:
        """Take away what a test that failed left mounted; its worker ends by that."""
        while mount.unmount(self.point, lazy=True):
            pass


@contextlib.contextmanager
def away(store: Path) -> Iterator[None]:
    """A store of files is away."""
    there = [store / "account" / kind for kind in ("chunks", "segments", "roots")]
    for folder in there:
        folder.rename(folder.with_suffix(".hidden"))
        folder.write_text("no folder")
    try:
        yield
    finally:
        for folder in there:
            folder.unlink()
            folder.with_suffix(".hidden").rename(folder)


class Worker:
    """The process."""

    def __init__(self, **task: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lunr.backup.lazy_image.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.events: list[dict[str, Any]] = []
        self._rest = b""
        self.tell(json.dumps(task))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def next(self, timeout: float = 30.0) -> dict[str, Any] | None:
        """The next event; None at the end."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"no event in time; before: {self.events[-3:]}"
            if select.select([self.process.stdout], [], [], left)[0]:
                more = self.process.stdout.read(65536)
                if not more:
                    return None
                self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        self.events.append(json.loads(line))
        return self.events[-1]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of this name."""
        while (found := self.next()) is not None:
            if found["event"] == event:
                return found
        raise AssertionError(f"it ended without {event}: {self.events[-3:]}, {self.log()}")

    def log(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> tuple[int, dict[str, Any] | None, str]:
        """Exit code, last event, log."""
        last = None
        while (event := self.next()) is not None:
            last = event
        log = self.log()
        code = self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        assert KEY not in log
        return code, last, log

    def unmount(self) -> dict[str, Any]:
        """End it in order."""
        self.tell("unmount")
        code, last, log = self.end()
        assert code == 0, (last, log)
        assert last is not None
        return dict(last["result"])


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # whoever serves it was killed
            os.close(fd)
