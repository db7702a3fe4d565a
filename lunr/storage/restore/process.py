"""The process that serves a lazy restore, as the node sees it.

Its code is lunr/backup/lazy_image/process.py.

The process outlives the agent, which may be killed and started again while the volume is in
use. An agent takes a lock before it starts a process; the process inherits the lock and holds it
as long as it lives. An agent that does not get the lock connects to the process that is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lunr.common import errors
from lunr.storage import system

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "lunr.backup.lazy_image.process")
#: In the process's folder, which it runs in: a unix socket's path has at most 107 bytes (unix(7)).
CONTROL = "control"
_LOCK = "lock"
_PAUSE = 0.05
#: Seconds that a process which lives is given to open its socket, or to die.
_CONNECT_TIMEOUT = 60.0


class ProcessSilent(errors.LunrError):
    """The process that serves the lazy restore in {folder} lives but can't be reached."""

    code = "filling_silent"
    retry = True


class RestoreProcess:
    """One process, and the connection that commands go over, and events come.

    Attributes:
        is_new: whether it was started here; else it was there already.
    """

    def __init__(
        self,
        connection: socket.socket,
        pid: int,
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.is_new = process is not None
        self._connection = connection
        self._pid = pid
        self._process = process

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of the process, until it ends or the connection does."""
        with contextlib.suppress(ConnectionError), self._connection.makefile("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it was killed while it wrote
                    yield json.loads(line)

    def send(self, command: str) -> None:
        """Give a command. That the process is gone is noticed where its events end."""
        with contextlib.suppress(OSError):
            self._connection.sendall(command.encode() + b"\n")

    def kill(self) -> None:
        """End it at once."""
        _log.warning("killing the process %d, which serves a lazy restore", self._pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection, after the events have ended."""
        self._connection.close()
        if self._process is not None:
            # Its connection closes when it exits; where a device hangs, that takes its time.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)


def connect_or_spawn(
    folder: Path,
    task: Mapping[str, Any],
    command: Sequence[str] = COMMAND,
    before_spawn: Callable[[], None] = lambda: None,
) -> RestoreProcess:
    """Connect to the process that serves in `folder`; spawn one with `task` if there is none.

    Args:
        folder: where it has its lock and its control socket.
        task: as lunr/backup/lazy_image/process.py has it; holds secrets.
        command: what starts a process.
        before_spawn: called before a process is started.

    Raises:
        ProcessSilent: a process lives and does not answer.
        OSError: none can be started.
    """
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    while time.monotonic() < deadline:
        lock = take_lock(folder)
        if lock is not None:
            try:
                before_spawn()
                return _spawn(folder, task, command, lock)
            finally:
                os.close(lock)
        try:
            return attach(folder)
        except OSError:  # it is just beginning, or ending
            time.sleep(_PAUSE)
    raise ProcessSilent(folder=folder)


def take_lock(folder: Path) -> int | None:
    """The lock of `folder`, as a descriptor; None: a process serves there."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _spawn(
    folder: Path, task: Mapping[str, Any], command: Sequence[str], lock: int
) -> RestoreProcess:
    ours, its = socket.socketpair()
    try:
        with its:
            os.set_blocking(its.fileno(), True)  # eventlet makes sockets otherwise
            process = subprocess.Popen(
                command,
                stdin=its.fileno(),
                stdout=its.fileno(),
                cwd=folder,
                env=system.environment(),
                start_new_session=True,
                pass_fds=[lock],
            )
        connected = RestoreProcess(ours, process.pid, process)
    except BaseException:
        ours.close()
        raise
    connected.send(json.dumps({**task, "control": CONTROL}))
    return connected


def attach(folder: Path) -> RestoreProcess:
    """Connect to the process that serves in `folder`.

    Raises:
        OSError: there is none, or it does not listen.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{at}/{CONTROL}")
        finally:
            os.close(at)
        size = struct.calcsize("3i")
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    except BaseException:
        connection.close()
        raise
    pid, _, _ = struct.unpack("3i", peer)
    return RestoreProcess(connection, pid, None)
