"""A restored volume is used at once: its first byte is read when hardly any of it is there.

The volume is a disk with Debian's root file system and data. It is restored twice. The first
restore is written to while it fills, and compared; from the second a virtual machine boots, with
the fill's progress beside what it says. The fills are held back, so that one can see them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path

import click

from lunr.client import Client
from lunr.client.records import Volume
from lunr.common import units
from tools.demos.performance import perform
from tools.demos.stage import Disk, Lunr, Session, Stage, expect, run, set_up_virtual_machines
from tools.virtual.debian import guest
from tools.waiting import PATIENCE

INITIATOR = "iqn.2026-11.io.lunr.demo:initiator"
SIZE = units.GIB
#: MiB a second: a GiB takes ten seconds.
LIMIT = 100
#: The same where a machine boots, which even a busy one does before this has filled the volume.
BOOT_LIMIT = 1
PIECE = 4096
#: Where it is written while nothing is there, from the end.
PATCHED = 16 * units.MIB


def export(client: Client, volume_id: str, folder: Path) -> Disk:
    """The volume as a disk."""
    client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
    return Disk(client.exports.wait(volume_id, timeout=PATIENCE), folder)


def make_image(image: Path, random: int) -> None:
    """A disk of SIZE: Debian's root file system, and so many random bytes at the end."""
    run(["cp", "--sparse=always", guest.IMAGE, image])
    with image.open("r+b") as file:
        file.seek(SIZE - random)
        while (left := SIZE - file.tell()) > 0:
            file.write(os.urandom(min(left, 16 * units.MIB)))


def back_up(stage: Stage, folder: Path, client: Client, image: Path) -> str:
    """Write the image to a volume over iSCSI, and back that up; the backup's id."""
    with stage.step("write Debian and random bytes to a volume") as (step, show):
        volume = client.volumes.create(size=SIZE // units.GIB)
        volume = client.volumes.wait(volume.id, timeout=PATIENCE)
        export(client, volume.id, folder).write_image(image, show)
        step.size = image.stat().st_blocks * 512
    with stage.step("back it up") as (step, show):
        taken = client.backups.create(volume.id)
        taken = client.backups.wait(
            taken.id, timeout=PATIENCE, progress=lambda record: show(record.progress)
        )
        step.size = taken.bytes_stored
    return str(taken.id)


def use(stage: Stage, folder: Path, client: Client, backup: str, image: Path) -> None:
    """Restore, read and write at once, wait until all is there, compare."""
    with stage.step("restore it: from POST to the first bytes read") as (step, _):
        id = client.volumes.create(backup=backup, fill_limit=LIMIT).id
        client.volumes.wait_usable(id, timeout=PATIENCE)
        session = Session(export(client, id, folder), folder)
        session.read_into_nothing(SIZE - PIECE, PIECE)
        step.note = f"{client.volumes.get(id).progress} % were there"
    try:
        patch = folder / "patch"
        patch.write_bytes(os.urandom(PIECE))
        with stage.step("write where nothing is there yet, and sync") as (step, _):
            session.write(patch, SIZE - PATCHED, PIECE)
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
        client.volumes.wait(id, timeout=PATIENCE, progress=told)
        step.size = SIZE
    with stage.step("log in again, read all of it, compare") as (step, show):
        client.exports.delete(id)
        client.exports.wait_deleted(id, timeout=PATIENCE)
        copy = folder / "copy"
        export(client, id, folder).read_image(copy, show)
        with image.open("r+b") as changed:
            changed.seek(SIZE - PATCHED)
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
        record = client.volumes.wait_usable(id, timeout=PATIENCE)
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
            step.note = f"{debian.said()[-1].strip()} with {record.progress} % there"
        with stage.step("the limit is lifted, and the rest is filled in") as (step, show):
            client.volumes.update(id, fill_limit=0)
            client.volumes.wait(id, timeout=PATIENCE, progress=lambda record: show(record.progress))


def play(stage: Stage, folder: Path, ends: contextlib.ExitStack, *, random: int) -> None:
    """Start what is needed, and show all of it."""
    set_up_virtual_machines(stage, guest.MAKE)
    with stage.step("start lunr: API, node, housekeeper, tgtd"):
        lunr = Lunr(folder / "lunr")
        ends.callback(lunr.stop)
        lunr.wait_until_up()
    client, image = lunr.client(), folder / "image"
    make_image(image, random)
    backup = back_up(stage, folder, client, image)
    use(stage, folder, client, backup, image)
    boot(stage, folder, client, backup)
    stage.table()


@click.command()
@click.option(
    "--size",
    type=click.IntRange(32, 512),
    default=512,
    show_default=True,
    metavar="MIB",
    help="How many random bytes are on the volume besides Debian.",
)
def main(size: int) -> None:
    """Use a restored volume while it is filled, and boot a machine from one.

    Needs root and 6 GiB in the temporary folder (TMPDIR). What it needs besides (QEMU, Debian's
    kernel, a disk with Debian) is set up the first time, by tools/setup --vm and
    tools/virtual/debian/make, which takes a few minutes.
    """
    perform(functools.partial(play, random=size * units.MIB), 6 * units.GIB)


if __name__ == "__main__":
    main(prog_name="tools/demo lazy")
