"""Forks storage nodes, to be killed at a given step of a job.

``python -m tests.support.nursery CONFIG FOLDER`` imports all that a node needs
once, which takes long in an emulated machine. Then each line ``start`` on its
standard input forks one, which is `lunr-storage` to the letter; the answer is
its pid. ``wait`` answers how the last one ended.

What FOLDER/doom says when a job begins, as ``KIND STEP``, kills the node with
SIGKILL just before step number STEP of a job of that KIND. Steps are what
the node does to the world: every command, every change to a file or folder, every
request to the target, every wait for a disk, every sign of progress. FOLDER/killed gets what
the step would have been.
"""

from __future__ import annotations

# Taken before eventlet replaces them: this process only forks.
from _thread import get_ident
from os import fork, waitpid

_MAIN = get_ident()

# ruff: noqa: E402
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenlet

from lunr.storage import main as storage
from lunr.storage.job import Job
from lunr.storage.supervisor import Supervisor

_CHANGES = {
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.remove",
    "os.rename",
    "fcntl.ioctl",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Doom:
    """Counts the steps of one kind of job, and ends the process before one of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = 0
        self._kind = ""
        self._job: Any = None

    def begin(self, job: Job) -> None:
        """A job begins, in this green thread."""
        path = self._folder / "doom"
        kind, _, step = path.read_text().partition(" ") if path.exists() else ("", "", "0")
        if job.kind == kind and job.attempt == 1:
            self._kind, self._job, self._left = kind, greenlet.getcurrent(), int(step)

    def end(self) -> None:
        """The job ended; it had fewer steps."""
        self._left = 0

    def step(self, what: str) -> None:
        """A step is about to be done."""
        if not self._left or not self._is_the_jobs():
            return
        self._left -= 1
        if not self._left:
            (self._folder / "killed").write_text(f"{self._kind}: {what}")
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_the_jobs(self) -> bool:
        """Whether it is the job's own thread, or one that does what would block (tpool)."""
        return get_ident() != _MAIN or greenlet.getcurrent() is self._job

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """See sys.addaudithook."""
        if not self._left:
            return
        if event == "subprocess.Popen":
            self.step(" ".join(str(word) for word in args[1])[:200])
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            if str(args[0]).startswith("/") and args[0] != os.devnull:  # not a child's pipes
                self.step(f"write to {args[0]}")
        elif event == "socket.connect" and isinstance(args[1], str):
            self.step(f"ask {args[1]}")
        elif event in _CHANGES:
            self.step(f"{event} {args[0]}")


def _watched(doom: Doom) -> None:
    """Have `doom` told of jobs, waits for disks and progress."""
    run, tick, blocking = Supervisor._run, Job.advance, storage.concurrency.blocking

    def doomed_run(self: Supervisor, job: Job) -> dict[str, Any]:
        doom.begin(job)
        try:
            return run(self, job)
        finally:
            doom.end()

    def doomed_tick(self: Job, done: int, total: int) -> None:
        doom.step(f"say that {done} of {total} are done")
        tick(self, done, total)

    def doomed_blocking(function: Callable[..., Any], *args: Any) -> Any:
        doom.step(f"wait for {getattr(function, '__qualname__', function)}")
        return blocking(function, *args)

    Supervisor._run = doomed_run  # type: ignore[method-assign]
    Job.advance = doomed_tick  # type: ignore[method-assign]
    storage.concurrency.blocking = doomed_blocking
    sys.addaudithook(doom.audit)


def _child(config: str, folder: Path) -> None:
    log = os.open(folder / "storage.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _watched(Doom(folder))
    sys.exit(storage.main(["--config-file", config]))


def main() -> None:
    """Serve orders until standard input ends."""
    config, folder = sys.argv[1], Path(sys.argv[2])
    pid = 0
    print("ready", flush=True)
    for order in os.fdopen(0, closefd=False):  # not sys.stdin, which eventlet made green
        if order.strip() == "start":
            pid = fork()
            if not pid:
                _child(config, folder)
            print(pid, flush=True)
        else:
            print(waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
