"""The main job: a volume, written over iSCSI, backed up twice, restored twice, compared.

Everything is real: the API and its database, the storage node and its XFS pool,
an iSCSI target with CHAP, an ext4 file system made from this machine's own
files, and the store (a folder, or with --swift a one-node OpenStack Swift).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lunr.backup import stores
from lunr.client import Client
from lunr.common import units
from tools.demos.performance import perform
from tools.demos.stage import DemoError, Disk, Lunr, Session, Stage, expect, run
from tools.services.loopback import read_env
from tools.waiting import PATIENCE, wait_until

INITIATOR = "iqn.2026-11.io.lunr.demo:initiator"
BLOCK = 32 * units.KIB
#: The files that are taken: small ones use up the inodes, and one large one fills the volume.
FILE_SIZES = range(16 * units.KIB, 16 * units.MIB)
#: The part of the volume that is changed between the two backups.
CHANGED = 1 / 43
#: How often Swift is started again when another process took one of its ports.
SWIFT_ATTEMPTS = 3
#: Where files for the demonstration's file system come from, until there is enough.
SOURCES = (
    *("/usr/lib", "/usr/libexec", "/usr/bin", "/usr/sbin", "/usr/local"),
    *("/opt", "/usr/share", "/srv", "/home", "/root", "/var"),
)


def gather(folder: Path, enough: int) -> int:
    """Copy this machine's own files to `folder`, at least `enough` bytes; return the bytes.

    A small machine's files are taken more than once. Links would be quicker than copies, and change
    while they are read where the files do.
    """
    total = 0
    for number in range(100):
        for file in own_files(folder.parent):
            target = folder / str(number) / file.relative_to("/")
            with contextlib.suppress(OSError):  # a file that went away, or can't be read
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                total += target.stat().st_size
            if total >= enough:
                return total
    raise DemoError(f"this machine has hardly any files in {', '.join(SOURCES)}")


def own_files(besides: Path) -> Iterator[Path]:
    """Regular files of this machine, but for those below `besides`."""
    for source in SOURCES:
        for path, folders, names in os.walk(source):
            here = Path(path)
            folders[:] = [f for f in folders if here / f != besides and not (here / f).is_mount()]
            for name in names:
                file = here / name
                with contextlib.suppress(OSError):
                    kind = file.lstat()
                    if stat.S_ISREG(kind.st_mode) and kind.st_size in FILE_SIZES:
                        yield file


def changed_runs(old: Path, new: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of blocks in which two images of one size differ."""
    start = None
    with old.open("rb") as a, new.open("rb") as b:
        size = new.stat().st_size
        for offset in range(0, size, BLOCK):
            if a.read(BLOCK) != b.read(BLOCK):
                start = offset if start is None else start
            elif start is not None:
                yield start, offset - start
                start = None
        if start is not None:
            yield start, size - start


def repair(image: Path) -> None:
    """Have e2fsck repair what the tools that made the image have left to it."""
    subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True)
    run(["e2fsck", "-fn", image])


def same(one: Path, two: Path) -> bool:
    """Whether two files hold the same bytes."""
    return subprocess.run(["cmp", "-s", one, two], check=False).returncode == 0


class MainJob:
    """The steps, in order, on one running lunr."""

    def __init__(self, stage: Stage, client: Client, folder: Path, store: Any, size: int) -> None:
        self.stage = stage
        self.client = client
        self.folder = folder
        self.store = store
        #: Bytes of the files.
        self.size = size
        #: Their file system is half empty.
        self.gib = math.ceil(2 * size / units.GIB)
        self.first = folder / "first.img"
        self.second = folder / "second.img"
        #: (offset, length) of what differs between the two.
        self.changes: list[tuple[int, int]] = []

    def make_file_systems(self) -> None:
        """The image that is backed up first, and the one it is changed into."""
        files = self.folder / "files"
        title = f"collect {units.human(self.size)} of this machine's files"
        with self.stage.step(title) as (step, _):
            step.size = gather(files, self.size)
        with self.stage.step("make an ext4 image of them (mke2fs -d)") as (step, _):
            run(["mke2fs", "-q", "-t", "ext4", "-d", files, self.first, f"{self.gib}G"])
            repair(self.first)
            step.size = self.first.stat().st_blocks * 512
        with self.stage.step("change some files in a copy of it (debugfs)") as (step, _):
            run(["cp", "--sparse=always", self.first, self.second])
            paper = self.folder / "new-file"
            paper.write_bytes(os.urandom(int(self.size * CHANGED)))
            script = self.folder / "debugfs.cmd"
            removed = (path.relative_to(files) for path in files.rglob("*") if path.is_file())
            # Others would have to be quoted for debugfs.
            inside = next(path for path in removed if re.fullmatch(r"[\w./+-]+", str(path), re.A))
            script.write_text(
                f"write {paper} written-while-attached\nmkdir new-folder\nrm /{inside}\n"
            )
            run(["debugfs", "-w", "-f", script, self.second])
            # debugfs leaves the counters of a removed file's blocks to the checker.
            repair(self.second)
            self.changes = list(changed_runs(self.first, self.second))
            step.size = sum(length for _, length in self.changes)
            step.note = "one file written, one removed, a folder made"
        shutil.rmtree(files)

    def export(self, volume_id: str) -> Any:
        """Export a volume to this machine's initiator."""
        self.client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
        return self.client.exports.wait(volume_id, timeout=PATIENCE)

    def wait_for_session(self, volume_id: str) -> Any:
        """The sessions of a volume's export; a node reports them with its next heartbeat."""
        return wait_until(
            lambda: self.client.exports.get(volume_id).sessions,
            what="the node reports a session of the initiator",
            interval=0.1,
        )

    def back_up(self, volume_id: str, title: str) -> Any:
        """Back the volume up, with progress."""
        with self.stage.step(title) as (step, show):
            backup = self.client.backups.create(volume_id, name=title)
            backup = self.client.backups.wait(
                backup.id, timeout=PATIENCE, progress=lambda record: show(record.progress)
            )
            step.size = backup.bytes_read
            step.note = f"{units.human(backup.bytes_stored)} stored"
        return backup

    def run(self) -> None:
        """Do all of it.

        Raises:
            DemoError: what the service promises did not hold.
        """
        stage, client = self.stage, self.client
        self.make_file_systems()
        with stage.step(f"create a volume of {self.gib} GiB"):
            volume = client.volumes.create(size=self.gib, name="demo")
            volume = client.volumes.wait(volume.id, timeout=PATIENCE)
        with stage.step("export it by iSCSI, with CHAP") as (step, _):
            export = self.export(volume.id)
            step.note = export.target_iqn
        disk = Disk(export, self.folder)
        with stage.step("write the file system over iSCSI (qemu-img)") as (step, show):
            disk.write_image(self.first, show)
            step.size = self.first.stat().st_blocks * 512
        one = self.back_up(volume.id, "back it up: the first backup is full")
        session = Session(disk, self.folder)
        try:
            with stage.step("change it over iSCSI, staying attached (qemu-io)") as (step, _):
                self.change(session)
                step.size = sum(length for _, length in self.changes)
            before = self.wait_for_session(volume.id)
            two = self.back_up(volume.id, "back it up again, attached: what changed")
            expect(self.wait_for_session(volume.id) == before, "the initiator was logged out")
            session.read_into_nothing(0, BLOCK)
            stage.steps[-1].note += ", an initiator logged in all the while"
        finally:
            session.close()
        expect(
            two.bytes_stored < one.bytes_stored / 2, "the second backup stored more than a change"
        )
        for backup, image in ((one, self.first), (two, self.second)):
            self.check_restore(backup, image)
        self.delete_everything()

    def change(self, session: Session) -> None:
        """Write over iSCSI what the second image has and the first has not."""
        patch = self.folder / "patch"
        patch.mkdir()
        with self.second.open("rb") as image:
            for offset, length in self.changes:
                piece = patch / str(offset)
                image.seek(offset)
                piece.write_bytes(image.read(length))
                session.write(piece, offset, length)
        session.flush()

    def check_restore(self, backup: Any, image: Path) -> None:
        """Restore a backup to a new volume, read that over iSCSI, compare and check it."""
        stage, client = self.stage, self.client
        which = "first" if image is self.first else "second"
        with stage.step(f"restore the {which} backup to a new volume") as (step, show):
            volume = client.volumes.create(backup=backup.id, name=f"from the {which}")
            volume = client.volumes.wait(
                volume.id, timeout=PATIENCE, progress=lambda record: show(record.progress)
            )
            step.size = volume.size * units.GIB
        disk = Disk(self.export(volume.id), self.folder)
        copy = self.folder / "read-back.img"
        with stage.step("read it back over iSCSI") as (step, show):
            disk.read_image(copy, show)
            step.size = copy.stat().st_size
        with stage.step("compare byte for byte, e2fsck -fn") as (step, _):
            expect(same(copy, image), f"the volume restored from the {which} backup differs")
            run(["e2fsck", "-fn", copy])
            step.size = copy.stat().st_size
            step.note = "equal, clean"
        copy.unlink()

    def delete_everything(self) -> None:
        """Delete exports, volumes and backups; after garbage collection the store is empty."""
        client = self.client
        with self.stage.step("delete exports, volumes and backups") as (step, _):
            volumes, backups = list(client.volumes.list()), list(client.backups.list())
            for volume in volumes:
                client.exports.delete(volume.id)
                client.exports.wait_deleted(volume.id, timeout=PATIENCE)
                client.volumes.delete(volume.id)
            for backup in backups:
                client.backups.delete(backup.id)
            for volume in volumes:
                client.volumes.wait_deleted(volume.id, timeout=PATIENCE)
            for backup in backups:
                client.backups.wait_deleted(backup.id, timeout=PATIENCE)
            step.note = f"{len(volumes)} volumes, {len(backups)} backups"
        with self.stage.step("collect garbage: the store is empty") as (step, _):
            before = list(self.store.list(""))
            client.admin.collect(client.account, wait=True, timeout=PATIENCE)
            left = [name for name, _ in self.store.list("")]
            expect(not left, f"{len(left)} objects are left in the store: {left[:3]}")
            step.size = sum(size for _, size in before)
            step.note = f"{len(before)} objects removed"


def start_swift(stage: Stage, tool: list[str], root: Path) -> dict[str, str]:
    """Start an OpenStack Swift of one node; the variables that a client of it needs."""
    with stage.step("start a one-node OpenStack Swift") as (step, _):
        for attempt in range(1, SWIFT_ATTEMPTS + 1):
            try:
                run([*tool, "start", root])
                break
            except DemoError as error:
                if attempt == SWIFT_ATTEMPTS or "Could not bind to" not in str(error):
                    raise
        env = read_env(root / "env")
        step.note = env["ST_AUTH"]
    return env


def play(
    stage: Stage, folder: Path, ends: contextlib.ExitStack, *, size: int, swift: bool, keep: bool
) -> None:
    """Start what is needed, do the main job, print the table."""
    env: dict[str, str] = {}
    tool = [str(Path(__file__).parents[1] / "swift")]
    stop_swift = [*tool, "stop", str(folder / "swift")]
    url = "swift:lunr" if swift else f"files:{folder / 'lunr' / 'store'}"
    if swift:
        ends.callback(run, stop_swift)
        env = start_swift(stage, tool, folder / "swift")
        os.environ.update(env)
    with stage.step("start lunr: API, node, housekeeper, tgtd") as (step, _):
        lunr = Lunr(folder / "lunr", "--store", url, env=env)
        ends.callback(lunr.stop)
        lunr.wait_until_up()
        step.note = f"http://127.0.0.1:{lunr.api_port}, iSCSI at {lunr.portal}"
    client = lunr.client()
    store = stores.open_store(url, client.account)
    MainJob(stage, client, folder, store, size).run()
    stage.table()
    if keep:
        say_how_to_go_on(stage, folder, lunr, stop_swift if swift else [])


def say_how_to_go_on(stage: Stage, folder: Path, lunr: Lunr, stop_swift: list[str]) -> None:
    """What --keep leaves behind, and how to use and end it."""
    kill = f"kill {lunr.process.pid}; tail --pid={lunr.process.pid} -f /dev/null"
    stop = "; ".join([kill, *([shlex.join(stop_swift)] if stop_swift else []), f"rm -r {folder}"])
    stage.console.print(
        f"""
lunr goes on running. To use it:
  . {folder / "lunr" / "openrc"}
  bin/lunr volume create --size 1 --name mine
  bin/lunr volume list
To stop it and remove what it left:
  {stop}
""",
        soft_wrap=True,
    )


@click.command(
    epilog="There are more demonstrations: tools/demo live backs up a running virtual machine, "
    "kills it and starts it again; tools/demo lazy uses a restored volume while it is filled, and "
    "boots a machine from one."
)
@click.option("--swift", is_flag=True, help="Store backups in a real one-node OpenStack Swift.")
@click.option(
    "--size",
    type=click.IntRange(32, 16384),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="How much of this machine's files is backed up.",
)
@click.option("--keep", is_flag=True, help="Leave everything running, and say how to use it.")
def main(size: int, swift: bool, keep: bool) -> None:
    """Show lunr's main job on real data, from an empty folder to an empty store.

    Needs root, 1 GiB and seven times --size in the temporary folder (TMPDIR) and a minute or two.
    """
    play_it = functools.partial(play, size=size * units.MIB, swift=swift, keep=keep)
    perform(play_it, units.GIB + 7 * size * units.MIB, keep=keep)


if __name__ == "__main__":
    main(prog_name="tools/demo")
