"""A whole lunr of the test's own, by `lunr up`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.client import Client
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
def client(lunr: Lunr) -> Client:
    """A client of that service, with an admin's token."""
    return lunr.client()
