"""A whole lunr of the test's own, by `lunr up`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.client import Client
from lunr.common import units
from tests.support.services import need_command, need_root
from tools.demos.stage import Lunr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the service keeps its state."""
    need_root()
    for command, package in (("tgtd", "tgt"), ("mkfs.xfs", "xfsprogs"), ("setpriv", "util-linux")):
        need_command(command, package)
    return tmp_path / "lunr"


@pytest.fixture
def lunr(root: Path) -> Iterator[Lunr]:
    """A service that is up."""
    service = Lunr(root)
    try:
        service.wait_until_up()
        yield service
    finally:
        service.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Content for a volume of 1 GiB: 40 MiB of random bytes, here and there."""
    need_command("qemu-io", "qemu-utils")
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(units.GIB)
        for place in (0, 300 * units.MIB, units.GIB - 10 * units.MIB):
            file.seek(place)
            file.write(os.urandom(10 * units.MIB))
    return path


@pytest.fixture
def client(lunr: Lunr) -> Client:
    """A client of that service, with an admin's token."""
    return lunr.client()
