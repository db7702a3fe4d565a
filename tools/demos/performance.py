"""How a demonstration is performed: its folder, its end, and what it says when it fails."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from lunr.common import units
from lunr.common.errors import LunrError
from tools.demos.stage import DemoError, Stage
from tools.virtual.debian.guest import BootFailed
from tools.waiting import wait_until

#: What does it: called with the stage, the folder for all it makes, and what is to be done at its
#: end, whatever happens.
Play = Callable[[Stage, Path, contextlib.ExitStack], None]

#: Signals besides SIGINT that ask for the end.
_TO_END = (signal.SIGTERM, signal.SIGHUP)
#: The variables that the programs of lunr and the clients of OpenStack heed. A demonstration is
#: about services of its own.
_OTHERS = ("LUNR_", "OS_", "ST_")
_OWN = "LUNR_PATIENCE"  # of tools/demo, in minutes
_KEPT = (_OWN, "LUNR_TEST_PATIENCE", "LUNR_PORTS")
#: The bytes of a unix socket's path: below the folder, and at most (unix(7)).
_SOCKET_BELOW, _SOCKET_PATH = 25, 107
_SHOWN_LINES = 8


def perform(play: Play, needed: int, *, root: bool = True, keep: bool = False) -> None:
    """Perform a demonstration, and end this process unless it succeeds.

    When it has succeeded or was interrupted, nothing is left of it. When it has failed, nothing
    runs any more and its folder is kept.

    Args:
        needed: bytes in the temporary folder.
        root: whether it needs to be root.
        keep: leave everything as it is when it has succeeded.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    check_machine(needed, root)
    for name in [name for name in os.environ if name.startswith(_OTHERS) and name not in _KEPT]:
        del os.environ[name]
    for number in _TO_END:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="lunr-demo-"))
    # All that is started has it in its environment, by which it is found at the end.
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    stage, ends = Stage(), contextlib.ExitStack()
    try:
        play(stage, folder, ends)
        if not keep:
            _end(ends)
            wait_until(lambda: not _left(folder), what="nothing is left of the demonstration")
    except (KeyboardInterrupt, SystemExit) as interrupt:
        click.echo("\nEnding what was started ...", err=True)
        with contextlib.suppress(Exception):  # all that is left is ended below
            _end(ends)
        _sweep(folder)
        shutil.rmtree(folder)
        click.echo("Interrupted; nothing is left of it.", err=True)
        sys.exit(interrupt.code if isinstance(interrupt, SystemExit) else 128 + signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        logs = _ends_of_logs(folder)  # before they tell of the end
        with contextlib.suppress(Exception):  # what has failed may fail at its end as well
            _end(ends)
        _sweep(folder)
        click.echo(_failure(error, stage, folder, logs), err=True)
        sys.exit(1)
    if not keep:
        shutil.rmtree(folder)


def check_machine(needed: int, root: bool) -> None:
    """See that the demonstration can be performed here at all.

    Raises:
        ClickException: it can't; the message says what to do.
    """
    if root and os.geteuid() != 0:
        raise click.ClickException(
            "it mounts a pool and runs an iSCSI target: start it as root (or with sudo)"
        )
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < needed:
        raise click.ClickException(
            f"it needs {units.human(needed)} in {folder}, where {units.human(free)} are free: "
            "name a folder that has room, as in TMPDIR=/var/tmp"
        )
    if len(folder) + len("/lunr-demo-12345678") + _SOCKET_BELOW > _SOCKET_PATH:
        raise click.ClickException(
            f"the path {folder} is too long for a socket in it: name another, as in TMPDIR=/tmp"
        )


def _end(ends: contextlib.ExitStack) -> None:
    """Do what is to be done at the end; nobody interrupts that."""
    for number in (signal.SIGINT, *_TO_END):
        signal.signal(number, signal.SIG_IGN)
    ends.close()


def _sweep(folder: Path) -> None:
    """End what is still there of a demonstration that did not come to its end."""

    def is_swept() -> bool:
        left = list(_processes(folder))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(is_swept, what="what the demonstration has started ends")
    for point in _mounts(folder):
        subprocess.run(["umount", "--lazy", point], check=True)


def _left(folder: Path) -> list[object]:
    return [*_processes(folder), *_mounts(folder)]


def _processes(folder: Path) -> Iterator[int]:
    """The pids of what was started in the demonstration, besides this process."""
    mark = os.fsencode(f"TMPDIR={folder}")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables and int(entry.name) != os.getpid():
                yield int(entry.name)


def _mounts(folder: Path) -> list[str]:
    """The mount points in the folder, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        point for line in reversed(lines) if (point := line.split()[4]).startswith(f"{folder}/")
    ]


def _ends_of_logs(folder: Path) -> str:
    """The end of each log, the one that was written last at the end."""
    logs = [path for path in folder.rglob("*.log") if path.is_file() and path.stat().st_size]
    parts = []
    for path in sorted(logs, key=lambda path: path.stat().st_mtime):
        lines = path.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        parts.append("\n".join([f"--- the end of {path}", *lines]))
    return "\n".join(parts)


def _failure(error: Exception, stage: Stage, folder: Path, logs: str) -> str:
    """What to tell a person: the logs, what failed, and what to try."""
    known = isinstance(error, DemoError | LunrError | AssertionError | BootFailed)
    reason = str(error) if known else "".join(traceback.format_exception(error))
    command = shlex.join(["tools/demo", *_arguments()])
    patience = float(os.environ.get(_OWN, "10"))
    lines = [
        logs,
        "",
        f"It failed{f' at: {stage.current}' if stage.current else ''}",
        reason.strip(),
        "",
        f"All it made is kept in {folder}; nothing of it runs any more.",
        "What to try:",
        f"  {command}   # again",
        f"  {_OWN}={5 * patience:g} {command}   # waits longer, on a machine that is very busy",
        "  the logs above: they are whole in that folder",
    ]
    if (folder / "lunr" / "up.json").exists():
        lines.append(f"  bin/lunr up --root {folder / 'lunr'}   # the service, as it was left")
    lines.append(f"  rm -r {folder}   # when it is of no use any more")
    return "\n".join(lines)


def _arguments() -> list[str]:
    """What tools/demo was called with."""
    demo = Path(sys.argv[0]).stem
    return [*([] if demo == "main" else [demo]), *sys.argv[1:]]
