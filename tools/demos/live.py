"""A virtual machine that writes all the time, backed up live, killed, and started again.

A guest with Debian's kernel (tools/setup --vm) writes a number to disk a, syncs, writes it to disk
b, syncs, and so on, with files and their checksums. Of every cut the numbers must be equal,
or a's one ahead, and all checksums right.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lunr.common import units
from tools.demos.performance import perform
from tools.demos.stage import Stage, expect, run, set_up_virtual_machines
from tools.virtual.writer import guest as writer
from tools.virtual.writer.guest import Guest
from tools.waiting import PATIENCE, wait_until

LUNR = Path(sys.executable).with_name("lunr")


def live(folder: Path, *arguments: str | Path) -> str:
    """What `lunr live` prints."""
    return run([LUNR, "live", *arguments, "--store", f"files:{folder}/store"])


@contextlib.contextmanager
def started(folder: Path, group_id: str, disks: Path, qmp: Path) -> Iterator[subprocess.Popen[str]]:
    """`lunr live start`, from when the disks are there."""
    store = ("--store", f"files:{folder}/store", "--qmp", str(qmp))
    log = folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(LUNR), "live", "start", group_id, str(disks), *store],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )

    def is_serving() -> bool:
        serving = "-blockdev" in log.read_text()
        expect(serving or process.poll() is None, "lunr live start failed")
        return serving

    try:
        wait_until(is_serving, what="lunr live start serves the disks")
        yield process
    finally:
        process.terminate()
        process.wait()


def play(stage: Stage, folder: Path, ends: contextlib.ExitStack, *, backups: int) -> None:
    """Back up, kill, restore, compare, start again."""
    set_up_virtual_machines(stage)
    a, b = (writer.make_disk(folder / name) for name in ("a.raw", "b.qcow2"))
    guest = Guest(writer.make_initramfs(folder), a, b, logs=folder)
    ends.callback(guest.end)
    with stage.step("boot a guest that writes to two disks") as (step, _):
        step.note = f"ready at {guest.start()}"
    made = []
    for number in range(backups):
        guest.await_writes()
        with stage.step(f"live backup {number + 1}") as (step, _):
            scratch = ("--qmp", guest.qmp, "--scratch", folder, "--json")
            group = json.loads(live(folder, "backup", *scratch))
            made.append(group["group_id"])
            step.size = sum(member["bytes_read"] for member in group["members"])
            stored = sum(member["bytes_stored"] for member in group["members"])
            step.note = (
                f"{group['members'][0]['way']}, stored {units.human(stored)}, "
                f"stood still for {group['stall_seconds'] * 1000:.1f} ms"
            )
    with stage.step("kill -9"):
        guest.kill()
    counter = 0
    for group_id in made:
        with stage.step("restore and compare") as (step, _):
            back = folder / group_id
            live(folder, "restore", group_id, back)
            counter = writer.check(back / "a.raw", back / "b.raw")
            step.note = f"{group_id}: both disks at {counter}, journals and checksums right"
    with contextlib.ExitStack() as stack:
        disks, boot = folder / "started", "start it from the last group, before its disks are there"
        with stage.step(boot) as (step, _):
            serving = stack.enter_context(started(folder, made[-1], disks, guest.qmp))
            guest.a, guest.b = (disks / f"{made[-1]}-{name}.qcow2" for name in "ab")
            found = guest.start()
            step.note = f"ready at {found}"
            expect(found == counter, f"the guest goes on at {found}, not at {counter}")
        with stage.step("its disks are filled while it runs"):
            expect(serving.wait(PATIENCE) == 0, "lunr live start failed")
    stage.table()


@click.command()
@click.option(
    "--backups",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many backups are made, restored and compared.",
)
def main(backups: int) -> None:
    """Back up a virtual machine that writes all the time, kill it and start it again.

    What it needs besides (QEMU, Debian's kernel) is set up the first time, by tools/setup --vm,
    which may have to be root and takes a few minutes.
    """
    perform(functools.partial(play, backups=backups), 600 * units.MIB, root=False)


if __name__ == "__main__":
    main(prog_name="tools/demo live")
