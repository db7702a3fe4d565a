"""Volume groups on the VM's disks, made as docs/operations.md tells an operator to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.initiator import sh


@contextlib.contextmanager
def volume_group(name: str, *disks: Path, thin_pool: str | None = None) -> Iterator[str]:
    """A group on disks full of zeros; with a thin pool in most of it, if one is named."""
    for disk in disks:
        sh("wipefs", "-qa", disk)
        sh("blkdiscard", "-z", disk)
        sh("pvcreate", "-q", disk)
    sh("vgcreate", "-q", name, *disks)
    try:
        for disk in disks:
            sh("pvchange", "-q", "--addtag", "lunr.zeroed", disk)
        if thin_pool is not None:
            sh("lvcreate", "-q", "-y", "-l", "80%FREE", "-T", f"{name}/{thin_pool}")
        yield name
    finally:
        sh("vgremove", "-qff", "-y", name)
        for disk in disks:
            sh("pvremove", "-qff", "-y", disk)
