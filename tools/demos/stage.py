"""What every demonstration needs: a running lunr, steps that are timed, commands with progress."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from lunr.client import Client
from lunr.common import units
from tools.services.loopback import free_port
from tools.virtual.debian.guest import MAKE
from tools.waiting import PATIENCE, wait_until

#: How often other ports are taken when somebody else was faster.
_PORT_ATTEMPTS = 5


class DemoError(Exception):
    """Something that the demonstration shows did not hold."""


def expect(condition: bool, message: str) -> None:
    """Stop the demonstration unless `condition` holds."""
    if not condition:
        raise DemoError(message)


@dataclass
class Step:
    """One line of the table at the end."""

    title: str
    seconds: float = 0.0
    size: int | None = None
    note: str = ""


def _console() -> Console:
    """The terminal; where there is none (a log), wide enough for every line."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


@dataclass
class Stage:
    """Shows steps as they run, and all of them as a table at the end."""

    console: Console = field(default_factory=_console)
    steps: list[Step] = field(default_factory=list)
    #: The title of the step that is under way, or has failed.
    current: str = ""

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[tuple[Step, Callable[[float], None]]]:
        """Time a step; gives the step (to note bytes) and a function that shows percent done."""
        step = Step(title)
        self.current = title
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        shown = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not shown) as bar:
            task = bar.add_task(title, total=100)
            begun = time.monotonic()
            yield step, lambda percent: bar.update(task, completed=percent)
            step.seconds = time.monotonic() - begun
        self.current = ""
        self.steps.append(step)
        size = "" if step.size is None else units.human(step.size)
        line = f"  {step.title:<47} {step.seconds:6.2f} s {size:>10}  {step.note}"
        self.console.print(line, soft_wrap=True)

    def table(self) -> None:
        """Print all steps."""
        table = Table("step", title="What was done", box=box.SIMPLE)
        for name in ("seconds", "bytes", "rate"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for step in self.steps:
            size = rate = ""
            if step.size is not None:
                size = units.human(step.size)
                if step.seconds > 0.05 and step.size > units.MIB:
                    rate = units.human(step.size / step.seconds) + "/s"
            table.add_row(step.title, f"{step.seconds:.2f}", size, rate, step.note)
        self.console.print(table)


def run(
    argv: Sequence[str | Path],
    show: Callable[[float], None] | None = None,
    tell: Callable[[str], object] | None = None,
) -> str:
    """Run a command and return what it printed; percentages in it are shown.

    Args:
        tell: called with each line at once; such a command may take its time.

    Raises:
        DemoError: it failed, or said nothing for `PATIENCE` seconds; with the end of its output.
    """
    words = [str(arg) for arg in argv]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]} is not installed: tools/setup names its package") from error
    with process:
        try:
            text = _read_output(process, show, tell).decode(errors="replace")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise DemoError(f"{shlex.join(words)} ended with {process.returncode}: {text[-1500:]}")
    return text


#: What QEMU says when a target lets nobody in. RFC 7143, section 11.13.5, lets an initiator try
#: again after a target error; open-iscsi does so, QEMU does not.
_LOGIN_REFUSED = "Status: Target error"


def run_initiator(argv: Sequence[str | Path], show: Callable[[float], None] | None = None) -> str:
    """Run a command that logs in, again while the target lets nobody in; see :func:`run`."""

    said: list[str] = []

    def has_logged_in() -> bool:
        try:
            said.append(run(argv, show))
        except DemoError as error:
            if _LOGIN_REFUSED not in str(error):
                raise
        return bool(said)

    wait_until(has_logged_in, what="the target lets initiators in")
    return said[0]


def set_up_virtual_machines(stage: Stage, commands: Sequence[Sequence[str]] = MAKE[:1]) -> None:
    """Install and make what virtual machines need, unless it is there; what is done is shown."""
    with stage.step("set up virtual machines, unless they are") as (step, _):
        for command in commands:
            run(command, tell=lambda line: stage.console.print(f"    {line}", markup=False))
        step.note = "tools/setup --vm"


def _read_output(
    process: subprocess.Popen[bytes],
    show: Callable[[float], None] | None,
    tell: Callable[[str], object] | None,
) -> bytes:
    """All that a process says until it ends."""
    assert process.stdout is not None
    output = b""
    told = 0
    while True:
        if not select.select([process.stdout], [], [], None if tell else PATIENCE)[0]:
            process.kill()
            said = output.decode(errors="replace")[-500:]
            raise DemoError(f"{process.args!r} has said nothing for {PATIENCE:g} s: {said}")
        if not (part := os.read(process.stdout.fileno(), 65536)):
            return output
        output += part
        if show and (percents := re.findall(rb"([\d.]+)/100%", part)):
            show(float(percents[-1]))
        while tell and (end := output.find(b"\n", told)) >= 0:
            tell(output[told:end].decode(errors="replace"))
            told = end + 1


class Lunr:
    """One `lunr up`, with its state under `root`, on ports that were free.

    Args:
        options: more options of `lunr up`, such as ``--store URL``.
        env: variables for it, besides this process's own.
    """

    def __init__(self, root: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.options = options
        self.env = env or {}
        self.log = root.with_name(root.name + ".up.log")
        self._choose_ports()
        self.start()

    def _choose_ports(self) -> None:
        self.api_port = free_port()
        self.portal = f"127.0.0.1:{free_port([self.api_port])}"

    def start(self) -> None:
        """Start it, also again."""
        argv = [sys.executable, "-m", "lunr.client.cli.main", "up", "--root", str(self.root)]
        argv += ["--api-port", str(self.api_port), "--portal", self.portal, *self.options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                # A Ctrl-C is for who has started it alone, and it may outlive the terminal.
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        """Return once the service says that it is up.

        Raises:
            DemoError: it has ended.
        """
        attempts = 1

        def is_up() -> bool:
            nonlocal attempts
            ended = self.process.poll() is not None
            said = self.log.read_text()
            if not ended or "lunr is up" in said:
                return "lunr is up" in said
            if not re.search(r" can't be used .*; set another by ", said):
                raise DemoError(f"lunr did not come up: {said[-2000:]}")
            # Another process has listened on a port since it was found free.
            if attempts == _PORT_ATTEMPTS:
                raise DemoError(f"no port stays free: {said[-2000:]}")
            attempts += 1
            self._choose_ports()
            self.start()
            return False

        wait_until(is_up, what="lunr is up", interval=0.05)

    def client(self) -> Client:
        """A client with the token that the service wrote to its openrc."""
        lines = (self.root / "openrc").read_text().splitlines()
        variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        return Client.from_env(variables, timeout=PATIENCE)

    def parts(self) -> dict[str, int]:
        """The pids of the parts that run now, by name."""
        names = {"api": "lunr.api.main", "storage": "lunr.storage.main", "orbit": "lunr.api.orbit"}
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            if words[0] == "tgtd" and f"portal={self.portal}" in words:
                found["tgtd"] = int(entry.name)
            for name, module in names.items():
                if module in words and str(self.root / "lunr.conf") in words:
                    found[name] = int(entry.name)
            if "lunr.backup.worker" in words and parent == found.get("storage"):
                found["worker"] = int(entry.name)
        return found

    def fillers(self) -> dict[str, int]:
        """The pids of the processes that serve volumes that are being filled, by volume."""
        found = {}
        for folder in (self.root / "run" / "fillings").glob("*"):
            for entry in Path("/proc").glob("[0-9]*/cwd"):
                with contextlib.suppress(OSError):
                    if entry.readlink() == folder:
                        found[folder.name] = int(entry.parent.name)
        return found

    def kill(self) -> None:
        """Kill it, with all its parts; those that serve filling volumes stay, and go on."""
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not self.parts(), what="the parts end")

    def reboot(self) -> None:
        """End it as a reset of the machine would: nothing of it runs, nothing is mounted."""
        self.kill()
        for pid in self.fillers().values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.fillers(), what="what serves filling volumes ends")
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (point := line.split()[4]).startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", point], check=True)

    def stop(self) -> None:
        """Stop the service and all its parts.

        Raises:
            DemoError: it did not end; then it was killed.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.reboot()
            raise DemoError(f"lunr did not stop within {PATIENCE:g} s") from None


class Disk:
    """An exported volume as qemu's tools reach it; the CHAP secret goes by a file, not by argv."""

    def __init__(self, export: Any, folder: Path) -> None:
        self.secret = folder / f"chap-{export.volume_id}"
        with os.fdopen(
            os.open(self.secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as f:
            f.write(export.auth_password)
        self.url = f"iscsi://{export.target_portal}/{export.target_iqn}/{export.target_lun}"
        self.options = {
            "driver": "raw",
            "file.driver": "iscsi",
            "file.transport": "tcp",
            "file.portal": export.target_portal,
            "file.target": export.target_iqn,
            "file.lun": str(export.target_lun),
            "file.user": export.auth_username,
            "file.password-secret": "chap",
            "file.initiator-name": export.initiator,
        }

    @property
    def secret_arguments(self) -> list[str]:
        """How qemu's tools are told the secret."""
        return ["--object", f"secret,id=chap,file={self.secret}"]

    @property
    def image(self) -> str:
        """The value of ``--image-opts``."""
        return ",".join(f"{key}={value}" for key, value in self.options.items())

    def write_image(self, source: Path, show: Callable[[float], None]) -> None:
        """Copy the raw image `source` onto the whole disk, which must still be all zeros."""
        argv = ["qemu-img", "convert", "-p", "-n", "--target-is-zero", *self.secret_arguments]
        run_initiator([*argv, "-f", "raw", "--target-image-opts", source, self.image], show)

    def read_image(
        self, target: Path, show: Callable[[float], None], seconds: float | None = None
    ) -> None:
        """Copy the whole disk into the raw image `target`, in so many seconds at most."""
        argv = ["qemu-img", "convert", "-p", *self.secret_arguments, "--image-opts", self.image]
        limit = [] if seconds is None else ["timeout", str(seconds)]
        run_initiator([*limit, *argv, "-O", "raw", target], show)


class Session:
    """An initiator that stays logged in to a disk and writes to it: a running qemu-io."""

    _PROMPT = "qemu-io> "

    def __init__(self, disk: Disk, folder: Path) -> None:
        self.log = folder / "qemu-io.log"
        self._argv = ["qemu-io", *disk.secret_arguments, "--image-opts", disk.image]
        wait_until(self._log_in, what="the target lets initiators in")

    def read(self, offset: int, length: int, pattern: int) -> None:
        """Read there, and expect nothing but bytes of the value `pattern`."""
        self._do(f"read -P {pattern} {offset} {length}")

    def read_into_nothing(self, offset: int, length: int) -> None:
        """Read there, whatever it is."""
        self._do(f"read {offset} {length}")

    def write(self, source: Path, offset: int, length: int) -> None:
        """Write the first `length` bytes of the file `source` at `offset` of the disk."""
        self._do(f"write -s {source} {offset} {length}")

    def flush(self) -> None:
        """Have all that was written put on the disk."""
        self._do("flush")

    def close(self) -> None:
        """Log out.

        Raises:
            DemoError: that takes too long; then the process was killed.
        """
        if self.process.poll() is None:
            try:
                self.process.communicate(b"quit\n", timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise DemoError(f"qemu-io did not log out within {PATIENCE:g} s") from None

    def _log_in(self) -> bool:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self._answers = 0
        try:
            self._wait()
        except DemoError as error:
            if _LOGIN_REFUSED not in str(error):
                raise
            return False
        return True

    def _do(self, command: str) -> None:
        assert self.process.stdin is not None
        # One at a time: qemu-io does not look again at lines that it has read ahead.
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        """Wait for the next prompt."""

        def text() -> str:
            said = self.log.read_text()
            if said.count(self._PROMPT) <= self._answers:
                if self.process.poll() is not None:
                    raise DemoError(f"qemu-io ended: {said[-1500:]}")
                return ""
            return said

        said = wait_until(text, what="qemu-io has done it", interval=0.002)
        self._answers += 1
        if re.search(r"failed|error", said, re.IGNORECASE):
            raise DemoError(f"writing over iSCSI failed: {said[-500:]}")
