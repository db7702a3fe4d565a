"""Files that a disk can't give: served by qemu-storage-daemon through FUSE.

They are what a kernel with failing disks under it is: reads end in EIO at
exact sectors, or hang so that not even SIGKILL ends who waits for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.services import need_command, need_fuse
from tests.support.waiting import wait_until


@contextlib.contextmanager
def bad_sectors(image: Path, sectors: Sequence[int]) -> Iterator[Path]:
    """A file with the bytes of `image`, of which `sectors` (of 512 bytes) can't be read."""
    injected = [
        {"event": "none", "errno": 5, "sector": sector, "once": False, "iotype": "read"}
        for sector in sectors
    ]
    nodes = (
        {"driver": "file", "node-name": "image", "filename": str(image)},
        {"driver": "blkdebug", "node-name": "top", "image": "image", "inject-error": injected},
    )
    with _served(image.with_name(f"{image.name}.bad"), nodes) as path:
        yield path


@contextlib.contextmanager
def hanging(path: Path, seconds: float) -> Iterator[Path]:
    """A file, made at `path`, that takes so long to answer a read."""
    node = {"driver": "null-co", "node-name": "top", "size": 1 << 20}
    with _served(path, [{**node, "latency-ns": int(seconds * 1e9)}]):
        yield path


@contextlib.contextmanager
def _served(path: Path, nodes: Sequence[dict[str, Any]]) -> Iterator[Path]:
    need_fuse()
    program = need_command("qemu-storage-daemon", "qemu-utils")
    path.touch()  # FUSE mounts on it
    arguments = [part for node in nodes for part in ("--blockdev", json.dumps(node))]
    export = f"fuse,id=export,node-name=top,mountpoint={path}"
    process = subprocess.Popen(
        [program, *arguments, "--export", export],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(
            lambda: process.poll() is not None or os.path.ismount(path), what="FUSE is mounted"
        )
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError(f"qemu-storage-daemon: {process.stderr.read().decode()}")
        yield path
    finally:
        process.terminate()
        process.communicate(timeout=30)
