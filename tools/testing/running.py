"""The programs that tools/test starts, and their end, whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.testing import leftovers

TOP = Path(__file__).resolve().parents[2]
BIN = TOP / ".venv" / "bin"
#: What tools/test keeps from one run for the next, and to be looked at.
CACHE = TOP / ".cache" / "tests"
#: Seconds that programs have to clean up when the run is ended from outside.
_TO_CLEAN_UP = 20.0
_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Program:
    """A program whose output goes to a file."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, env: dict[str, str], limit: float | None = None
    ) -> None:
        self.log = log
        self.began = time.monotonic()
        self._limit = limit
        with log.open("wb") as output:
            # Of a session of its own: Ctrl-C comes to tools/test alone, which ends all in order.
            self._process = subprocess.Popen(
                [str(word) for word in argv],
                cwd=TOP,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )

    def code(self) -> int | None:
        """The exit code, once it has ended."""
        code = self._process.poll()
        if code is None and self._limit and time.monotonic() - self.began > self._limit:
            self.signal(signal.SIGINT)
            self._limit = None
        return code

    def seconds(self) -> float:
        """How long it has been running, or ran if it was just seen to have ended."""
        return time.monotonic() - self.began

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def tail(self, lines: int = 60) -> str:
        """The end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Run:
    """A run of tools/test: its folder, and the programs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self._programs: list[Program] = []

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        env: dict[str, str] | None = None,
        limit: float | None = None,
    ) -> Program:
        """Start a program; its output goes to `name`.log."""
        log = self.logs / f"{name}.log"
        environment = {"TMPDIR": str(self.folder), **(env or {})}
        program = Program(argv, log, environment, limit)
        self._programs.append(program)
        return program

    def end(self) -> None:
        """End what still runs: first such that it can clean up."""
        self._signal_and_wait(signal.SIGINT, _TO_CLEAN_UP)
        self._signal_and_wait(signal.SIGKILL, 5.0)
        leftovers.remove(self.folder)

    def _signal_and_wait(self, number: signal.Signals, seconds: float) -> None:
        running = [program for program in self._programs if program.code() is None]
        for program in running:
            program.signal(number)
        deadline = time.monotonic() + seconds
        while any(program.code() is None for program in running) and time.monotonic() < deadline:
            time.sleep(0.1)


@contextlib.contextmanager
def a_run() -> Iterator[Run]:
    """A run whose programs do not outlive the ``with``; only their logs stay, in the cache.

    Raises:
        SystemExit: a signal asked to end.
    """

    def stop(number: int, _frame: object) -> None:
        for sig in _TO_END:
            signal.signal(sig, hurry)
        raise SystemExit(128 + number)

    def hurry(_number: int, _frame: object) -> None:
        for program in run._programs:
            program.signal(signal.SIGKILL)

    folder = Path(tempfile.mkdtemp(prefix="lunr-"))
    folder.chmod(0o711)  # PostgreSQL runs as another user, in a folder of its own within
    run = Run(folder)
    run.logs.mkdir()
    before = {sig: signal.signal(sig, stop) for sig in _TO_END}
    try:
        yield run
    finally:
        try:
            run.end()
            _keep(run.logs)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _keep(logs: Path) -> None:
    """Let the logs of this run take the place of those of the last one."""
    shutil.rmtree(CACHE / "logs", ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.move(logs, CACHE / "logs")


def watch(step: Callable[[], bool], interval: float = 0.2) -> None:
    """Call `step` again and again until it says that all is over."""
    while step():
        time.sleep(interval)
