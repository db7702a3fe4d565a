"""Forks lunr's programs; storage nodes to be killed at a given step of what they do.

``python -m tests.support.faults.processes`` imports all that they need once, which takes long in an
emulated machine. Then it takes orders on its standard input, one JSON object a line, and answers
each with a line:

- ``{"program": "storage", "argv": […], "log": FILE}``, or ``api`` or ``manage``: the pid of a
  process that is ``lunr-storage`` to the letter; with ``"doom": FOLDER`` it may be doomed
- ``"program": "verify"``: a process that asks for a share of an account's objects to be verified,
  as the housekeeper does each day; the account is the last argument
- ``{"wait": PID}``: how it ended, as os.waitpid has it

Steps are what the node does to the world: every command that changes something, and that it has
begun (it goes on without the node then); every change to a file or folder; every request to the
target; every order to a process that fills a volume; every wait for a disk; every sign of progress.
Looks are none: who is killed before a look leaves what is left by who is killed before the next
step. Steps are counted in each *piece of work* by itself:

- a kind of job, as ``backup.save``, in its first attempt; ``backup.save/2`` in its second; the last
  step is that the API is told of its end
- ``check``: all that the program does before there is an agent
- ``start``: all that the agent does before it claims jobs
- ``stop``: all that it does when it is told to end
- ``removals``: of what was deleted and is still there after the start
- ``wiper``: of a volume or COW area, in the background
- ``filling``: the life of the process that serves a restored volume, as the agent sees it
- ``cloning``: what has dm-clone fill it
- ``leaving``: its export is moved to the pool's device when it is full
- ``growing``: of a COW area that fills up
- ``tidying``: a baseline is given up

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import greenlet
from eventlet import hubs

from lunr.api import app
from lunr.api import main as api
from lunr.api.services import Services
from lunr.common import config, units
from lunr.manage.main import main as manage
from lunr.storage import main as storage
from lunr.storage import system
from lunr.storage.agent.agent import Agent
from lunr.storage.agent.job import ClaimedJob
from lunr.storage.agent.job_runner import JobRunner
from lunr.storage.agent.pending_deletes import PendingDeletes
from lunr.storage.baselines import Baselines
from lunr.storage.exports import Exports
from lunr.storage.pools.lvm import pool as lvm
from lunr.storage.pools.lvm.cow_areas import CowAreas
from lunr.storage.pools.lvm.wipe import Wiper
from lunr.storage.pools.thin import pool as thin
from lunr.storage.restore.dm_clone.backend import DmCloneBackend
from lunr.storage.restore.process import RestoreProcess
from lunr.storage.restore.supervisor import ProcessSupervisor
from lunr.storage.targets.lio import target as lio
from lunr.storage.targets.tgt import target as tgt
from lunr.storage.targets.tgt.control import Mode, Op

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
#: Commands that change nothing; of dmsetup, these words.
_LOOKS = {"lvs", "vgs", "pvs", "modprobe", "thin_check", "thin_dump", "findmnt", "losetup"}
_DM_LOOKS = {"info", "status", "table", "targets", "ls"}
#: What only reads, or has on the disk what all can read already, and may take long.
_IDLE = {"fsync", "read", "absent", "<lambda>"}
#: Bytes of every COW area that grows, of nodes which can be doomed: their volumes are small.
_LEAST_AREA = 64 * units.MIB


def is_look(argv: Sequence[object]) -> bool:
    """Whether that command changes nothing."""
    program, *words = (str(word) for word in argv)
    return program in _LOOKS or (program == "dmsetup" and words[0] in _DM_LOOKS)


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
        around = self._works.get(me)
        self._works[me] = work
        try:
            yield
        finally:
            del self._works[me]
            if around is not None:
                self._works[me] = around
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
            if not is_look(args[1]):
                self.step(_shown(args[1]))
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            # Not pipes, a file without a name, or a lock, which is looked at by opening it.
            name, is_nameless = str(args[0]), args[2] & os.O_TMPFILE == os.O_TMPFILE
            if (
                name.startswith("/")
                and name != os.devnull
                and not (is_nameless or name.endswith("/lock"))
            ):
                self.step(f"write to {name}")
        elif event == "os.mkdir" and os.path.lexists(args[0]):
            pass  # it is there
        elif event in {"os.remove", "os.rmdir"} and not os.path.lexists(args[0]):
            pass  # there is nothing to remove
        elif event in _CHANGES:
            self.step(f"{event} {args[0]}")


def _shown(argv: Sequence[object]) -> str:
    """A command, for people."""
    words = [str(word) for word in argv]
    if "--config" in words:  # LVM's, long and always the same
        del words[(at := words.index("--config")) : at + 2]
    return " ".join(words)[:200]


def _watched(doom: Doom) -> None:
    """Have `doom` told of all work and of all its steps."""
    _watch_work(doom)
    _watch_steps(doom)
    sys.addaudithook(doom.audit)


def _watch_work(doom: Doom) -> None:
    """Have `doom` told of all work."""

    def watch(owner: Any, function: str, name: Callable[..., str], end: str = "") -> None:
        real = getattr(owner, function)

        def watched(*args: Any) -> Any:
            with doom.work(name(*args)):
                result = real(*args)
                if end:
                    doom.step(end)
                return result

        setattr(owner, function, watched)

    def job_name(_: JobRunner, job: ClaimedJob) -> str:
        return job.kind if job.attempt == 1 else f"{job.kind}/{job.attempt}"

    watch(JobRunner, "_run", job_name, end="tell the API of the end")
    watch(storage, "_agent", lambda *_: "check")
    watch(Agent, "start", lambda _: "start")
    watch(Agent, "stop", lambda *_: "stop")
    watch(PendingDeletes, "_remove", lambda *_: "removals")
    watch(Wiper, "_wipe_if_free", lambda *_: "wiper")
    watch(ProcessSupervisor, "_keep_alive", lambda _: "filling")
    watch(DmCloneBackend, "_drive_fill", lambda _: "cloning")
    watch(Exports, "_hand_over", lambda *_: "leaving")
    watch(CowAreas, "_grow", lambda *_: "growing")
    watch(Baselines, "_try_to_give_up", lambda *_: "tidying")
    CowAreas.least = _LEAST_AREA


def _watch_steps(doom: Doom) -> None:
    """Have `doom` told of the steps that Python's audit does not tell of."""
    tick, blocking, start = ClaimedJob.advance, concurrency.blocking, system._start
    request, send, kill = tgt.request, RestoreProcess.send, RestoreProcess.kill

    def doomed_tick(self: ClaimedJob, done: int, total: int) -> None:
        doom.step(f"say that {done} of {total} are done")
        tick(self, done, total)

    def doomed_blocking(function: Callable[..., Any], *args: Any) -> Any:
        # What waits for a target has steps of its own, and changes nothing else.
        is_target = str(function.__module__).startswith("lunr.storage.targets.")
        if not is_target and function.__name__ not in _IDLE:
            doom.step(f"wait for {function.__name__}")
        return blocking(doom.lend(function), *args)

    def doomed_start(argv: Sequence[object], **options: Any) -> Any:
        process = start(argv, **options)  # type: ignore[arg-type]
        if not is_look(argv):
            doom.step(f"it has begun: {_shown(argv)}")
        return process

    def doomed_request(socket: Path, mode: Mode, op: Op, params: str = "", **numbers: Any) -> str:
        if op is not Op.SHOW:
            told = params.partition(",password=")[0]
            doom.step(f"ask tgtd: {mode.name} {op.name} {told} {numbers}".replace("\0", " "))
        return request(socket, mode, op, params, **numbers)

    def doomed_send(self: RestoreProcess, command: str) -> None:
        if command != "requests":  # a look
            doom.step(f"order {command.split()[0]}" if command[:1] != "{" else "give the task")
        send(self, command)

    def doomed_kill(self: RestoreProcess) -> None:
        doom.step("kill the process that serves")
        kill(self)

    ClaimedJob.advance = doomed_tick  # type: ignore[method-assign]
    concurrency.blocking = doomed_blocking
    system._start = doomed_start  # type: ignore[assignment]
    tgt.request = doomed_request
    RestoreProcess.send = doomed_send  # type: ignore[method-assign]
    RestoreProcess.kill = doomed_kill  # type: ignore[method-assign]


def _ask_for_verify(argv: list[str]) -> None:
    *options, account = argv
    Services.of(config.load(options)).verification.request(account, shares=3)


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
    programs = {
        "storage": storage.main,
        "api": api.main,
        "manage": manage,
        "verify": _ask_for_verify,
    }
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
