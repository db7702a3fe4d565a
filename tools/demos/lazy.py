"""A restored volume is used at once: its first byte is read when hardly any of it is there.

The volume is a disk with Debian's root file system and data. It is restored twice. The first
restore is written to while it fills, and compared; from the second a virtual machine boots, with
the fill's progress beside what it says. The fills are held back, so that one can see them.
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
from tools.virtual.debian import guest

INITIATOR = "iqn.2026-11.io.lunr.demo:initiator"
SIZE = units.GIB
#: MiB a second: a GiB takes ten seconds.
LIMIT = 100
#: The same where a machine boots, which takes far less than the three minutes of this.
BOOT_LIMIT = 5
PIECE = 4096


def export(client: Client, volume_id: str, folder: Path) -> Disk:
    """The volume as a disk."""
    client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
    return Disk(client.exports.wait(volume_id), folder)


def make_image(image: Path) -> None:
    """A disk of SIZE: Debian's root file system, and after it random bytes."""
    shutil.copyfile(guest.IMAGE, image)
    with image.open("ab") as file:
        while (left := SIZE - file.tell()) > 0:
            file.write(os.urandom(min(left, 16 * units.MIB)))


def back_up(stage: Stage, folder: Path, client: Client, image: Path) -> str:
    """Write the image to a volume over iSCSI, and back that up; the backup's id."""
    with stage.step("write Debian and random bytes to a volume") as (step, show):
        volume = client.volumes.wait(client.volumes.create(size=SIZE // units.GIB).id)
        export(client, volume.id, folder).write_image(image, show)
        step.size = SIZE
    with stage.step("back it up") as (step, show):
        taken = client.backups.create(volume.id)
        taken = client.backups.wait(taken.id, progress=lambda record: show(record.progress))
        step.size = taken.bytes_stored
    return str(taken.id)


def use(stage: Stage, folder: Path, client: Client, backup: str, image: Path) -> None:
    """Restore, read and write at once, wait until all is there, compare."""
    with stage.step("restore it: from POST to the first bytes read") as (step, _):
        id = client.volumes.create(backup=backup, fill_limit=LIMIT).id
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


def boot(stage: Stage, folder: Path, client: Client, backup: str) -> None:
    """Boot a machine from a restore that has hardly begun."""
    with stage.step("restore it once more, and switch on a machine") as (step, _):
        id = client.volumes.create(backup=backup, fill_limit=BOOT_LIMIT).id
        record = client.volumes.wait_usable(id)
        disk = export(client, id, folder)
        step.note = f"{record.progress} % were there"
    shown = -1

    def beside() -> None:
        nonlocal shown
        if int(debian.seconds) > shown:
            shown = int(debian.seconds)
            said = ["", *(line for line in debian.said() if line.strip())][-1].strip()
            line = f"    {shown:3} s  {client.volumes.get(id).progress:3} %  {said}"
            stage.console.print(line, markup=False, soft_wrap=True)

    with guest.booting(disk.image, folder, disk.secret_arguments) as debian:
        with stage.step(f"it boots, filled with {BOOT_LIMIT} MiB/s at most") as (step, _):
            debian.wait_for_login(beside)
            record = client.volumes.get(id)
            expect(record.status == "RESTORING", "the volume was full before Debian had booted")
            step.note = f"{debian.said()[-1].strip()} with {record.progress} % there"
        with stage.step("the limit is lifted, and the rest is filled in") as (step, show):
            client.volumes.update(id, fill_limit=0)
            client.volumes.wait(id, progress=lambda record: show(record.progress))


def main() -> int:
    """Show it. Needs root, and 6 GiB in the temporary folder (TMPDIR)."""
    stage = Stage()
    guest.make()
    folder = Path(tempfile.mkdtemp(prefix="lunr-demo-"))
    try:
        service = Lunr(folder / "lunr")
        try:
            service.wait_until_up()
            client, image = service.client(), folder / "image"
            make_image(image)
            backup = back_up(stage, folder, client, image)
            use(stage, folder, client, backup, image)
            boot(stage, folder, client, backup)
        finally:
            service.stop()
        stage.table()
    except (DemoError, guest.BootFailed) as error:
        Console(stderr=True).print(f"It does not hold: {error}")
        return 1
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
