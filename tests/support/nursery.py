"""Forks lunr's programs; storage nodes to be killed at a given step of what they do.

``python -m tests.support.nursery`` imports all that they need once, which takes long in an
emulated machine. Then it takes orders on its standard input, one JSON object a line, and answers
each with a line:

- ``{"program": "storage", "argv": […], "log": FILE}``, or ``api`` or ``manage``: the pid of a
  process that is ``lunr-storage`` to the letter; with ``"doom": FOLDER`` it may be doomed
- ``{"wait": PID}``: how it ended, as os.waitpid has it

Steps are what the node does to the world: every command, every change to a file or folder,
every request to the target, every wait for a disk, every sign of progress. They are counted
in each *piece of work* by itself:

- a kind of job, as ``backup.save``, in its first attempt; ``backup.save/2`` in its second
- ``start``: all that the agent does before it claims jobs
- ``removals``: of what was deleted and is still there after the start
- ``wiper``: of a volume or COW area, in the background

A line ``WORK STEP`` of FOLDER/doom kills the node with SIGKILL just before that step of that
work, once: the line is gone then. FOLDER/killed gets what the step would have been. When a piece
of work ends by itself, FOLDER/steps/WORK (with a colon for the slash) gets its steps, a line each.
"""

from __future__ import annotations

# Taken before eventlet replaces them: this process only forks.
from os import fork, waitpid

from lunr.common import concurrency

concurrency.patch()

# ruff: noqa: E402 - the modules below must find the standard library patched
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import greenlet
from eventlet import hubs

from lunr.api import app
from lunr.api import main as api
from lunr.manage.main import main as manage
from lunr.storage import main as storage
from lunr.storage.agent import Agent
from lunr.storage.job import Job
from lunr.storage.pools import lvm, thin
from lunr.storage.pools.wipe import Wiper
from lunr.storage.removals import Removals
from lunr.storage.supervisor import Supervisor
from lunr.storage.targets import lio, tgt

#: What the programs import only when they need it.
_NEEDED = (app, lvm, thin, lio, tgt)

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


class Work:
    """One piece of work, and where it will be killed."""

    def __init__(self, name: str, doomed: int) -> None:
        self.name, self.doomed = name, doomed
        self.steps: list[str] = []
        #: Nothing that is done to watch it is a step.
        self.is_watched = True


class Doom:
    """Counts the steps of each piece of work, and ends the process before the doomed one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._works: dict[Any, Work] = {}

    def dooms(self) -> dict[str, int]:
        """The step that kills, by the name of the work."""
        lines = (self._folder / "doom").read_text().splitlines()
        return {name: int(step) for name, step in (line.split() for line in lines)}

    @contextlib.contextmanager
    def work(self, name: str) -> Iterator[None]:
        """What this green thread does meanwhile is work of that name."""
        me = greenlet.getcurrent()
        work = Work(name, self.dooms().get(name, 0))
        self._works[me] = work
        try:
            yield
        finally:
            del self._works[me]
        ended = self._folder / "steps" / name.replace("/", ":")
        ended.with_name("new").write_text("\n".join(work.steps))
        ended.with_name("new").rename(ended)

    def step(self, what: str) -> None:
        """A step is about to be done."""
        work = self._works.get(greenlet.getcurrent())
        if work is None or not work.is_watched:
            return
        work.steps.append(what.replace("\n", " "))
        if len(work.steps) == work.doomed:
            work.is_watched = False
            left = [f"{one} {step}\n" for one, step in self.dooms().items() if one != work.name]
            (self._folder / "doom").write_text("".join(left))
            (self._folder / "killed").write_text(f"{work.name}: {what}")
            os.kill(os.getpid(), signal.SIGKILL)

    def lend(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, for another thread to call: it is this one's work all the same."""
        work = self._works.get(greenlet.getcurrent())
        if work is None:
            return function

        def lent(*args: Any) -> Any:
            me = greenlet.getcurrent()
            self._works[me] = work
            try:
                return function(*args)
            finally:
                del self._works[me]

        return lent

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """See sys.addaudithook."""
        if event == "subprocess.Popen":
            words = [str(word) for word in args[1]]
            if "--config" in words:  # LVM's, long and always the same
                del words[(at := words.index("--config")) : at + 2]
            self.step(" ".join(words)[:200])
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            if str(args[0]).startswith("/") and args[0] != os.devnull:  # not a child's pipes
                self.step(f"write to {args[0]}")
        elif event == "socket.connect" and isinstance(args[1], str):
            self.step(f"ask {args[1]}")
        elif event in _CHANGES:
            self.step(f"{event} {args[0]}")


def _watched(doom: Doom) -> None:
    """Have `doom` told of all work, of waits for disks and of progress."""

    def job_name(_: Supervisor, job: Job) -> str:
        return job.kind if job.attempt == 1 else f"{job.kind}/{job.attempt}"

    def working(owner: type, method: str, name: Callable[..., str]) -> None:
        real = getattr(owner, method)

        def watched(*args: Any) -> Any:
            with doom.work(name(*args)):
                return real(*args)

        setattr(owner, method, watched)

    working(Supervisor, "_run", job_name)
    working(Agent, "start", lambda _: "start")
    working(Removals, "_remove", lambda *_: "removals")
    working(Wiper, "_wipe_if_free", lambda *_: "wiper")
    tick, blocking = Job.advance, concurrency.blocking

    def doomed_tick(self: Job, done: int, total: int) -> None:
        doom.step(f"say that {done} of {total} are done")
        tick(self, done, total)

    def doomed_blocking(function: Callable[..., Any], *args: Any) -> Any:
        doom.step(f"wait for {getattr(function, '__qualname__', function)}")
        return blocking(doom.lend(function), *args)

    Job.advance = doomed_tick  # type: ignore[method-assign]
    concurrency.blocking = doomed_blocking
    sys.addaudithook(doom.audit)


def _run(order: dict[str, Any]) -> None:
    """Be the program, to the end of this process."""
    # An epoll of its own: all would wake up for what one of them waits for.
    hubs.use_hub()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if folder := order.get("doom"):
        _watched(Doom(Path(folder)))
    programs: dict[str, Callable[[list[str]], Any]]
    programs = {"storage": storage.main, "api": api.main, "manage": manage}
    sys.exit(programs[order["program"]](order["argv"]))


def main() -> None:
    """Serve orders until standard input ends."""
    print("ready", flush=True)
    with open(0, closefd=False) as orders:  # not sys.stdin or os.fdopen: eventlet made them green
        for line in orders:
            order = json.loads(line)
            if "wait" in order:
                print(waitpid(order["wait"], 0)[1], flush=True)
                continue
            pid = fork()
            if not pid:
                _run(order)
            print(pid, flush=True)


if __name__ == "__main__":
    main()
