"""A virtual machine that writes all the time, backed up live, killed, and started again.

A guest with Debian's kernel (tools/setup --vm) writes a number to disk a, syncs, writes it to disk
b, syncs, and so on, with files and their checksums. Of every cut the numbers must be equal,
or a's one ahead, and all checksums right.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lunr.common import units
from tools.demos.stage import DemoError, Stage, expect, run
from tools.virtual.writer import guest as guests
from tools.virtual.writer.guest import Guest

LUNR = Path(sys.executable).with_name("lunr")
BACKUPS = 3


def live(folder: Path, *arguments: str | Path) -> str:
    """What `lunr live` prints."""
    return run([LUNR, "live", *arguments, "--store", f"files:{folder}/store"])


@contextlib.contextmanager
def started(folder: Path, group_id: str, disks: Path, qmp: Path) -> Iterator[subprocess.Popen[str]]:
    """`lunr live start`, from when the disks are there."""
    store = ("--store", f"files:{folder}/store", "--qmp", str(qmp))
    argv = [str(LUNR), "live", "start", group_id, str(disks), *store]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        expect("-blockdev" in process.stdout.readline(), "lunr live start failed")
        yield process
    finally:
        process.terminate()
        process.communicate()


def play(stage: Stage, folder: Path, guest: Guest) -> None:
    """Back up, kill, restore, compare, start again."""
    with stage.step("boot a guest that writes to two disks") as (step, _):
        guest.start()
        step.note = guest.said().strip()
    made = []
    for number in range(BACKUPS):
        time.sleep(1)
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
    with stage.step("kill -9") as (step, _):
        guest.kill()
    counter = 0
    for group_id in made:
        with stage.step("restore and compare") as (step, _):
            back = folder / group_id
            live(folder, "restore", group_id, back)
            counter = guests.check(back / "a.raw", back / "b.raw")
            step.note = f"{group_id}: both disks at {counter}, journals and checksums right"
    with contextlib.ExitStack() as stack:
        disks, boot = folder / "started", "start it from the last group, before its disks are there"
        with stage.step(boot) as (step, _):
            serving = stack.enter_context(started(folder, made[-1], disks, guest.qmp))
            guest.a, guest.b = (disks / f"{made[-1]}-{name}.qcow2" for name in "ab")
            guest.start()
            step.note = guest.said().strip()
            expect(f"ready at {counter}" in step.note, f"the guest goes on at {step.note}")
        with stage.step("its disks are filled while it runs") as (step, _):
            expect(serving.wait(60) == 0, "lunr live start failed")
    stage.table()


def main() -> int:
    """Play it."""
    if not guests.KERNEL.exists():
        print("tools/demo live: it needs Debian's kernel: tools/setup --vm", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="lunr-demo-"))
    a, b = (guests.make_disk(folder / name) for name in ("a.raw", "b.qcow2"))
    guest = Guest(guests.make_initramfs(folder), a, b)
    try:
        play(Stage(), folder, guest)
    except (DemoError, AssertionError) as error:
        print(f"tools/demo live: {error}", file=sys.stderr)
        return 1
    finally:
        guest.end()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
