"""Restored volumes that are used while they are filled."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from lunr.client import Client, errors
from lunr.common import units
from tests.support.waiting import PATIENCE
from tests.system.up.volumes import export
from tools.demos.stage import Disk, Lunr, Session, run

MIB = units.MIB
#: Where the content has data.
PLACES = (0, 300 * MIB, units.GIB - 10 * MIB)


def restored(client: Client, taken: str, fill: str = "never", **options: object) -> str:
    """A new volume from a backup, as soon as it can be used."""
    id = client.volumes.create(backup=taken, fill=fill, **options).id  # type: ignore[arg-type]
    client.volumes.wait_usable(id, timeout=PATIENCE)
    return id


def fill(client: Client, id: str) -> None:
    """Have it filled, if it was not by being read."""
    with contextlib.suppress(errors.WrongState):
        client.volumes.update(id, fill="eager", fill_limit=0)
    assert client.volumes.wait(id, timeout=PATIENCE).status == "ACTIVE"


def reboot(lunr: Lunr) -> None:
    """As if the machine had been reset."""
    lunr.reboot()
    lunr.start()
    lunr.wait_until_up()


class Written:
    """A volume that is written to here and there, and a copy of it to compare with."""

    def __init__(self, client: Client, id: str, image: Path, folder: Path) -> None:
        self.copy = folder / f"copy-of-{id}"
        run(["cp", "--sparse=always", image, self.copy])
        self.disk = Disk(export(client, id), folder)
        self._folder = folder
        self._random = random.Random(id)

    def write(self) -> None:
        """Log in and write at 8 places, the half of them where there is data; synced."""
        session = Session(self.disk, self._folder)
        try:
            for number in range(8):
                length = self._random.choice((4096, 512, 12288, 64 << 10))
                base = self._random.choice(PLACES) if number % 2 else 500 * MIB
                offset = base + self._random.randrange(0, 9 * MIB, 512)
                piece = self._folder / "piece"
                piece.write_bytes(data := self._random.randbytes(length))
                session.write(piece, offset, length)
                with self.copy.open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
            session.flush()
        finally:
            session.close()
