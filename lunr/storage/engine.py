"""Runs the backup engine in a child process for each job (``python -m lunr.backup.worker``).

The worker reads one JSON object from its standard input, the task, and writes
JSON lines. Its input stays open: the line ``cancel`` asks it to stop, and its
end, which the kernel sees to when the agent dies, stops it at once. So secrets
are never in arguments, and no worker outlives the agent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from lunr.common import errors
from lunr.storage import system
from lunr.storage.agent.job import ClaimedJob, Stop

_log = logging.getLogger(__name__)

#: Seconds between asking a worker to stop and killing it.
STOP_GRACE = 10.0

#: Backups give way to the volumes' own work: lowest best-effort I/O class, and nice.
_LOW_PRIORITY = ("nice", "-n", "10", "ionice", "-c", "2", "-n", "7")
#: What has to be installed for it.
PROGRAMS = ("nice", "ionice")
#: With -P nothing is imported from the folder that the agent was started in.
WORKER = (*_LOW_PRIORITY, sys.executable, "-P", "-m", "lunr.backup.worker")


class EngineDied(errors.LunrError):
    """The backup engine ended unexpectedly: {reason}"""

    code = "engine_died"
    retry = True


@dataclass(frozen=True)
class Engine:
    """How this node's workers reach the store.

    Attributes:
        url: the store's URL.
        options: the store's options, its password among them.
        key: the master keys, as a key file has them: the first writes.
        encryption: "aes-256-gcm" or "none": of what is written.
        compression: "zstd" or "none".
        concurrency: requests to the store at once, of one job.
        limit: bytes a second to and from the store, of one job; 0: no limit.
        moved: called with the bytes that workers have worked off since the last call.
        command: what starts a worker.
    """

    url: str
    options: Mapping[str, Any] = field(repr=False)
    key: str = field(repr=False)
    encryption: str = "aes-256-gcm"
    compression: str = "zstd"
    concurrency: int = 4
    limit: int = 0
    moved: Callable[[int], None] = lambda _: None
    command: Sequence[str] = WORKER

    def access(self) -> dict[str, Any]:
        """What of any task tells how the store is reached; it holds secrets."""
        return {
            "store": {"url": self.url, "options": dict(self.options)},
            "key": self.key,
            "concurrency": self.concurrency,
        }

    def run(self, job: ClaimedJob, task: str, **fields: Any) -> dict[str, Any]:
        """Have a worker do `task` with `fields` for `job`, and return the result.

        Raises:
            errors.Cancelled: the job was stopped.
            errors.RemoteError: the worker failed and said why.
            EngineDied: the worker ended without a word.
        """
        order = {
            "task": task,
            **self.access(),
            "encryption": self.encryption,
            "compression": self.compression,
            "limit": self.limit,
            **fields,
        }
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=system.environment(),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise system.missing(str(self.command[0])) from error
        assert process.stdin is not None
        assert process.stdout is not None
        killed = threading.Event()
        kill = functools.partial(_kill, process, killed)
        ending = threading.Timer(STOP_GRACE, kill)
        try:
            with job.stoppable(lambda reason: _stop(process, reason, kill, ending)):
                _tell(process.stdin, json.dumps(order))
                result = self._follow(_lines(process.stdout, killed), job)
        finally:
            ending.cancel()
            _end(process)
        if result is not None:
            return result
        if job.stop_reason is not None:
            raise errors.Cancelled
        raise EngineDied(reason=_how(process.returncode))

    def _follow(self, lines: Iterable[bytes], job: ClaimedJob) -> dict[str, Any] | None:
        done = 0
        for line in lines:
            event = _parse(line)
            match event["event"]:
                case "progress":
                    job.advance(event["done"], event["total"])
                    self.moved(max(0, event["done"] - done))
                    done = max(done, event["done"])
                case "done":
                    return dict(event["result"])
                case "failed" if event["code"] == errors.Cancelled.code:
                    raise errors.Cancelled
                case "failed":
                    raise errors.RemoteError(
                        event["code"], event["reason"], bool(event.get("retry"))
                    )
        return None


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise EngineDied(reason=f"it said {line[:200]!r}") from error
    if not isinstance(event, dict) or "event" not in event:
        raise EngineDied(reason=f"it said {line[:200]!r}")
    return event


def _tell(stdin: IO[bytes], line: str) -> None:
    # A worker that is gone is noticed where its output ends.
    with contextlib.suppress(BrokenPipeError):
        stdin.write(line.encode() + b"\n")
        stdin.flush()


def _lines(stdout: IO[bytes], killed: threading.Event) -> Iterator[bytes]:
    """What a worker says, line by line, until it ends.

    One that was `killed` but is stuck in the kernel, where a disk hangs, does
    not end: after a second of silence it is not listened to any more.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(1.0):
                if killed.is_set():
                    return
                continue
            if not (piece := os.read(stdout.fileno(), 1 << 16)):
                break
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
    if rest:
        yield rest


def _stop(
    process: subprocess.Popen[bytes],
    reason: Stop,
    kill: Callable[[], None],
    ending: threading.Timer,
) -> None:
    if reason is Stop.CANCELLED and process.stdin is not None:
        _tell(process.stdin, "cancel")
        ending.start()
    else:
        kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the worker go, or make it: nothing of it may be left when the job ends."""
    with contextlib.suppress(BrokenPipeError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(STOP_GRACE)
    except subprocess.TimeoutExpired:
        _log.warning("worker %d does not end; killing it", process.pid)
        _kill(process, threading.Event())
        try:
            process.wait(STOP_GRACE)
        except subprocess.TimeoutExpired:
            # It is dead as soon as the kernel lets go of it, and does nothing before.
            _log.error("worker %d can't be killed: a device hangs", process.pid)
    assert process.stdout is not None
    process.stdout.close()


def _kill(process: subprocess.Popen[bytes], killed: threading.Event) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    killed.set()


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by signal {-returncode}"
    return f"exit code {returncode}"
