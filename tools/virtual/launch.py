"""What the machines of tools/vm share: the order, what its guest reads, a process with an end."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
CACHE = TOP / ".vm"
GUEST = Path(__file__).parent / "guest"

#: What timeout(1) says, and what a shell says of a command that can't be run.
TIMED_OUT = 124
NO_ANSWER = 125

#: Signals that ask this process to end.
_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class CannotRun(Exception):
    """Why there is no VM."""


@dataclass(frozen=True)
class Disk:
    """An empty disk; a plain one can neither discard nor write zeros by itself."""

    size: int
    is_plain: bool = False


@dataclass(frozen=True)
class Order:
    """What to run in a VM, and in what kind of VM."""

    command: Sequence[str]
    disks: Sequence[Disk] = ()
    #: Folders where what the guest writes stays.
    shares: Sequence[Path] = ()
    #: MiB; None for what the machine thinks is enough.
    memory: int | None = None
    udev: bool = False
    #: Seconds.
    timeout: float | None = None
    verbose: bool = False


def write_order(folder: Path, order: Order, machine: str, modules: Path) -> None:
    """Write to `folder` what the first programs of the guest read.

    Args:
        folder: where they look for it.
        order: what is to be run.
        machine: whose functions of ``guest/`` they use.
        modules: the folder with the kernel's modules, one folder for each version.
    """
    folder.chmod(0o755)
    (folder / "start").write_text((GUEST / "start").read_text())
    (folder / "machine").write_text((GUEST / machine).read_text())
    settings = {
        "modules": str(modules),
        "folder": str(Path.cwd()),
        "udev": "yes" if order.udev else "no",
    }
    (folder / "settings").write_text(_assignments(settings))
    (folder / "shares").write_text("".join(f"{share.resolve()}\n" for share in order.shares))
    (folder / "command").write_text("".join(f"{word}\0" for word in order.command))
    environment = folder / "environment"
    environment.touch(mode=0o600)
    environment.write_text(_assignments(os.environ, "export "))


def _assignments(values: Mapping[str, str], prefix: str = "") -> str:
    """Lines of shell that set the variables whose names a shell can have."""
    return "".join(
        f"{prefix}{name}={shlex.quote(value)}\n"
        for name, value in values.items()
        if name.isidentifier()
    )


def make_image(image: Path, disk: Disk) -> None:
    """Make an empty file of the disk's size, which takes no space yet."""
    image.touch()
    os.truncate(image, disk.size)


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    keep: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, in a group of its own, that does not outlive the ``with``.

    Nor does it outlive this process, even one that is killed. A signal that asks this process
    to end leaves the ``with`` by SystemExit.

    Args:
        argv: the program and its arguments.
        environment: instead of this process's.
        stdin: as subprocess takes it.
        stdout: the same.
        stderr: the same.
        keep: file descriptors that it inherits.

    Raises:
        CannotRun: the program is not there.
    """

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in _TO_END}
    process = None
    try:
        # Told to end in the middle of the start, this process would leave it behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, _TO_END)
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                pass_fds=keep,
                start_new_session=True,
                preexec_fn=_unblock,
            )
        except FileNotFoundError as error:
            raise CannotRun("setpriv is not installed: tools/setup --vm") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_END)
        yield process
    finally:
        if process is not None:
            kill_group(process)
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _unblock() -> None:
    """What is blocked in this process would be so in the VM's."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_END)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`started`, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_end(
    process: subprocess.Popen[bytes],
    timeout: float | None,
    wait: Callable[[], object] | None = None,
) -> bool:
    """Wait until the process has ended; return whether it had to be ended after `timeout`.

    Args:
        process: one of :func:`started`.
        timeout: in seconds; None waits for ever.
        wait: what to do until then; it returns when the process ends.
    """
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        kill_group(process)

    timer = threading.Timer(timeout, end) if timeout else None
    try:
        if timer is not None:
            timer.start()
        if wait is not None:
            wait()
        process.wait()
    finally:
        if timer is not None:
            timer.cancel()
    return timed_out.is_set()


def judge_end(order: Order, code: Path, console: Path, timed_out: bool) -> int:
    """Return what the VM's exit code is to be, and tell what there is to tell.

    Args:
        order: what was run.
        code: the file with the exit code that the guest wrote.
        console: what its kernel said.
        timed_out: whether it was ended after the order's timeout.
    """
    said = _read(code).strip()
    if order.verbose or not said.isdigit():
        sys.stderr.write(_read(console))
    if timed_out:
        print(f"tools/vm: not done after {order.timeout:g} s", file=sys.stderr)
        return TIMED_OUT
    if not said.isdigit():
        print("tools/vm: the VM ended without a word, see above", file=sys.stderr)
        return NO_ANSWER
    return int(said)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
