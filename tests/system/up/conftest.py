"""Whole lunrs, by `lunr up`: one for all tests of a file, or one of a test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.client import Client
from lunr.common import units
from tests.support.services import need_command, need_fuse
from tests.support.waiting import wait_until
from tests.system.up.restores import Written, restored
from tests.system.up.volumes import answers, backup, clear, store
from tools.demos.stage import Lunr


def need_lunr() -> None:
    """Skip the test where something for a whole lunr is missing."""
    need_fuse()
    for command, package in (("tgtd", "tgt"), ("mkfs.xfs", "xfsprogs"), ("setpriv", "util-linux")):
        need_command(command, package)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a service of the test's own keeps its state."""
    need_lunr()
    return tmp_path / "lunr"


class Shared:
    """The service of the tests of a file.

    A test may stop it, or kill it: the next one finds it up.

    Attributes:
        content: what the volume that stays has; see the fixture `stored`.
        kept: the ids of the volume and the backup that stay from one test to the next.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._service: Lunr | None = None
        self._serial = 0
        self.content = folder / "content"
        self.kept: dict[str, str] = {}

    def up(self) -> Lunr:
        """The service, up."""
        if self._service is None:
            self._serial += 1
            self._service = Lunr(self._folder / f"lunr{self._serial}")
        elif self._service.process.poll() is not None:
            self._service.start()
        self._service.wait_until_up()
        with self._service.client() as client:  # a part that was killed may not be back
            wait_until(lambda: answers(client), what="the API answers")
        return self._service

    def clear(self) -> None:
        """Delete what a test has left; with a service that can't, the tests have a new one."""
        try:
            with self.up().client() as client:
                clear(client, self.kept.values())
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Stop it; the next test has a new one."""
        self.kept = {}
        if self._service is not None and self._service.process.poll() is None:
            self._service.stop()
        self._service = None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    need_lunr()
    found = Shared(tmp_path_factory.mktemp("up"))
    yield found
    found.end()


@pytest.fixture
def lunr(shared: Shared) -> Iterator[Lunr]:
    """A service that is up; what the test leaves in it is deleted."""
    yield shared.up()
    shared.clear()


@pytest.fixture
def client(lunr: Lunr) -> Iterator[Client]:
    """A client of that service, with an admin's token."""
    with lunr.client() as found:
        yield found


def make_image(path: Path) -> Path:
    """Content for a volume of 1 GiB: 30 MiB of random bytes, here and there."""
    need_command("qemu-io", "qemu-utils")
    with path.open("wb") as file:
        file.truncate(units.GIB)
        for place in (0, 300 * units.MIB, units.GIB - 10 * units.MIB):
            file.seek(place)
            file.write(os.urandom(10 * units.MIB))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Content for a volume that no other test has."""
    return make_image(tmp_path / "image")


@pytest.fixture
def content(shared: Shared) -> Path:
    """What the backups `stored` are of."""
    if not shared.content.exists():
        make_image(shared.content)
    return shared.content


@pytest.fixture
def stored(lunr: Lunr, client: Client, shared: Shared, content: Path, tmp_path: Path) -> str:
    """A backup of the test's own, of a volume that stays; its objects are others', too."""
    need_fuse()
    if not shared.kept:
        volume_id, first = store(client, content, tmp_path)
        shared.kept = {"volume": volume_id, "first": first}
    return backup(client, shared.kept["volume"])


@pytest.fixture
def written(client: Client, stored: str, content: Path, tmp_path: Path) -> tuple[str, Written]:
    """A volume that is never filled by itself, and has been written to."""
    id = restored(client, stored)
    one = Written(client, id, content, tmp_path)
    one.write()
    return id, one
