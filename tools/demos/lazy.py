"""A restored volume is used at once: its first byte is read when hardly any of it is there.

The fill is held back, so that one can see it. While it goes on, the volume is written to.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from lunr.client import Client
from lunr.client.records import Volume
from lunr.common import units
from tools.demos.stage import DemoError, Disk, Lunr, Session, Stage, expect

INITIATOR = "iqn.2026-11.io.lunr.demo:initiator"
SIZE = units.GIB
#: MiB a second: a GiB takes ten seconds.
LIMIT = 100
PIECE = 4096


def export(client: Client, volume_id: str, folder: Path) -> Disk:
    """The volume as a disk."""
    client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
    return Disk(client.exports.wait(volume_id), folder)


def play(stage: Stage, folder: Path, client: Client) -> None:
    """Back up, restore, use, compare."""
    image = folder / "image"
    with stage.step("write 1 GiB of random bytes to a volume") as (step, show):
        with image.open("wb") as file:
            for _ in range(SIZE // (16 * units.MIB)):
                file.write(os.urandom(16 * units.MIB))
        volume = client.volumes.wait(client.volumes.create(size=1).id)
        export(client, volume.id, folder).write_image(image, show)
        step.size = SIZE
    with stage.step("back it up") as (step, show):
        taken = client.backups.create(volume.id)
        taken = client.backups.wait(taken.id, progress=lambda record: show(record.progress))
        step.size = taken.bytes_stored
    with stage.step("restore it: from POST to the first bytes read") as (step, _):
        id = client.volumes.create(backup=taken.id, fill_limit=LIMIT).id
        client.volumes.wait_usable(id)
        session = Session(export(client, id, folder), folder)
        session.read_into_nothing(SIZE - PIECE, PIECE)
        step.note = f"{client.volumes.get(id).progress} % were there"
    try:
        patch = folder / "patch"
        patch.write_bytes(os.urandom(PIECE))
        with stage.step("write where nothing is there yet, and sync") as (step, _):
            session.write(patch, SIZE - 64 * units.MIB, PIECE)
            session.flush()
            step.note = f"{client.volumes.get(id).progress} % were there"
    finally:
        session.close()
    begun = time.monotonic()

    def told(record: Volume) -> None:
        show(record.progress)
        if record.fill_rate and not stage.console.is_terminal:
            rate = units.human(record.fill_rate)
            stage.console.print(
                f"    {time.monotonic() - begun:5.1f} s: {record.progress} %, {rate}/s, "
                f"{record.fill_remaining} s left"
            )

    with stage.step(f"the rest is filled in, {LIMIT} MiB/s at most") as (step, show):
        client.volumes.wait(id, progress=told)
        step.size = SIZE
    with stage.step("log in again, read all of it, compare") as (step, show):
        client.exports.delete(id)
        client.exports.wait_deleted(id)
        copy = folder / "copy"
        export(client, id, folder).read_image(copy, show)
        with image.open("r+b") as changed:
            changed.seek(SIZE - 64 * units.MIB)
            changed.write(patch.read_bytes())
        with image.open("rb") as one, copy.open("rb") as other:
            while part := one.read(units.MIB):
                expect(part == other.read(units.MIB), "the restored volume differs")
        step.size = SIZE
        step.note = "equal"


def main() -> int:
    """Show it. Needs root, and 5 GiB in the temporary folder (TMPDIR)."""
    stage = Stage()
    folder = Path(tempfile.mkdtemp(prefix="lunr-demo-"))
    try:
        service = Lunr(folder / "lunr")
        try:
            service.wait_until_up()
            play(stage, folder, service.client())
        finally:
            service.stop()
        stage.table()
    except DemoError as error:
        Console(stderr=True).print(f"It does not hold: {error}")
        return 1
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
