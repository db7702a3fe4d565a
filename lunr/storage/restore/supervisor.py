"""Keeps the process of one lazy restore alive, talks to it, and ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from lunr.common import errors
from lunr.storage.agent.backoff import Backoff
from lunr.storage.restore.process import RestoreProcess, attach, connect_or_spawn, take_lock
from lunr.storage.restore.record import RestoreRecord

_log = logging.getLogger(__name__)

#: Seconds that a process serves before its death counts as the first one.
_HEALTHY = 30.0
#: Seconds for the first mount. The store is asked for the backup's root then.
_MOUNT_TIMEOUT = 60.0
#: Seconds until a process that was told to end is killed.
_END_TIMEOUT = 15.0
#: Seconds for an answer. The process waits for writes under way.
_ANSWER_TIMEOUT = 30.0

#: The events that answer a command.
_ANSWERS = frozenset({"unfetched", "gone", "requests", "busy", "refused"})


class RestoreProcessDied(errors.LunrError):
    """The process that serves volume {id} ended: {reason}"""

    code = "filling_died"
    retry = True


class RestoreBusy(errors.LunrError):
    """Volume {id}, which is being restored, does not stand still: {reason}"""

    code = "filling_busy"
    retry = True


class ProcessUser(Protocol):
    """What a backend does around the life of its process."""

    def process_task(self) -> dict[str, Any]:
        """The task that a new process gets; holds secrets."""

    def before_spawn(self) -> None:
        """Prepare for a new process."""

    def prepare_use(self, process: RestoreProcess) -> None:
        """Set up what the volume is used through: a process, new or not, has mounted its file.

        Raises:
            errors.LunrError, OSError: it can't be; another process is tried.
        """

    def on_usable(self, process: RestoreProcess) -> None:
        """Take note that the volume can be used."""


class ProcessSupervisor:
    """Has one process serve the lazy restore of `record`, whatever becomes of the process."""

    def __init__(self, record: RestoreRecord) -> None:
        self._record = record
        self._changed = record.changed
        self._user: ProcessUser
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: RestoreProcess | None = None
        self._mounted = False
        self._failure: errors.LunrError | None = None
        self._answer: dict[str, Any] | None = None
        #: Held while an answer is waited for: one conversation at a time.
        self._conversation = threading.Lock()

    # --- its life --------------------------------------------------------------------

    def start(self, user: ProcessUser) -> None:
        """Have a process serve from now on."""
        if self._thread is not None:
            return
        self._user = user
        with contextlib.suppress(OSError):  # a dead process's mount is there
            self._record.mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"filling-{self._record.volume_id}"
        self._thread = threading.Thread(target=self._keep_alive, name=name, daemon=True)
        self._thread.start()

    @property
    def is_mounted(self) -> bool:
        """Whether the file can be used now."""
        return self._mounted

    def wait_mounted(self, check_cancelled: Callable[[], None]) -> None:
        """Return when the file can be used; `check_cancelled` is called meanwhile and may raise.

        Raises:
            RestoreProcessDied: it can't be, for a reason that may pass.
            errors.RemoteError: the process said why.
        """
        deadline = time.monotonic() + _MOUNT_TIMEOUT
        with self._changed:
            while not self._mounted:
                if self._failure is not None:
                    raise self._failure
                if time.monotonic() > deadline:
                    raise RestoreProcessDied(
                        id=self._record.volume_id, reason="it did not begin in time"
                    )
                check_cancelled()
                self._changed.wait(0.5)

    def stop(self) -> None:
        """Start no other process."""
        self._stopping.set()

    def resume(self) -> None:
        """Undo :meth:`stop`."""
        self._stopping.clear()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self.start(self._user)

    def unmount(self) -> bool:
        """End the process, if nobody has its file open; whether it has ended.

        One that has not goes on serving.
        """
        self.stop()
        with self._changed:
            process = self._process if self._mounted else None
            if process is not None:
                self._answer = None
                process.send("unmount")
                self._changed.wait_for(
                    lambda: self._answer is not None or self._process is None, _ANSWER_TIMEOUT
                )
            lives = self._process is not None
        if lives or not self.has_ended(_END_TIMEOUT):
            self.resume()
            return False
        return True

    def end(self) -> None:
        """End the process, whoever has its file open.

        Raises:
            RestoreBusy: it can't be ended.
        """
        self.stop()
        if not self.has_ended(0.0):
            self._detach()

    def _detach(self) -> None:
        deadline = time.monotonic() + _END_TIMEOUT
        # A connection of its own: no thread may be reading the events of another.
        while True:
            try:
                process = attach(self._record.run)
            except OSError as error:  # it is just ending, or beginning
                if self.has_ended(0.1):
                    return
                if time.monotonic() > deadline:
                    raise self._busy(str(error)) from error
            else:
                break
        try:
            process.send("detach")
            while not self.has_ended(0.5) and time.monotonic() < deadline:
                process.send("detach")  # one that is just beginning takes no command
            if not self.has_ended(0.0):
                process.kill()
        finally:
            process.close()
        if not self.has_ended(_END_TIMEOUT):
            raise self._busy("its process can't be ended")

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(OSError):  # there is none
            process = attach(self._record.run)
            process.kill()
            process.close()

    def has_ended(self, seconds: float) -> bool:
        """Whether the process is dead, within so many seconds."""
        if not self._record.run.exists():
            return True
        deadline = time.monotonic() + seconds
        while (lock := take_lock(self._record.run)) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        os.close(lock)
        return True

    def _busy(self, reason: str) -> RestoreBusy:
        return RestoreBusy(id=self._record.volume_id, reason=reason)

    # --- its thread ------------------------------------------------------------------

    def _keep_alive(self) -> None:
        backoff = Backoff(self._stopping)
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                self._serve_once()
                reason = "nobody knows why"
                error: errors.LunrError = RestoreProcessDied(
                    id=self._record.volume_id, reason=reason
                )
            except errors.LunrError as raised:
                error = raised
            except OSError as raised:
                error = RestoreProcessDied(id=self._record.volume_id, reason=str(raised))
            if self._stopping.is_set():
                return
            self._set_failure(error)
            if time.monotonic() - begun > _HEALTHY:
                backoff.over()
            backoff.wait(error)

    def _set_failure(self, error: errors.LunrError | None) -> None:
        text = None if error is None else str(error)
        with self._changed:
            self._failure = error
            self._record.set_status(lambda status: replace(status, process_trouble=text))

    def _serve_once(self) -> None:
        """Follow a process until it ends.

        Raises:
            errors.LunrError: why it ended.
        """
        user, run = self._user, self._record.run
        process = connect_or_spawn(run, user.process_task(), before_spawn=user.before_spawn)
        with self._changed:
            self._process = process
        if self._stopping.is_set():  # what has stopped this has not seen the process
            process.send("detach")
        try:
            for event in process.events():
                self._apply_event(process, str(event.pop("event")), event)
        finally:
            with self._changed:
                self._process, self._mounted = None, False
                self._changed.notify_all()
            process.close()

    def _apply_event(self, process: RestoreProcess, event: str, fields: dict[str, Any]) -> None:
        if event == "mounted":
            self._user.prepare_use(process)
            seconds = fields["seconds"]
            _log.info("volume %s can be used; it took %s s", self._record.volume_id, seconds)
            with self._changed:
                self._mounted = True
                self._set_failure(None)
            self._user.on_usable(process)
        elif event == "failed":
            retry = bool(fields.get("retry"))
            raise errors.RemoteError(fields["code"], fields["reason"], retry)
        elif event in _ANSWERS:
            with self._changed:
                self._answer = {"event": event, **fields}
                self._changed.notify_all()
        else:
            self._record.apply_event(event, fields)

    # --- talking to it -----------------------------------------------------------------

    def send(self, *commands: str) -> None:
        """Give commands to the process, if it serves the file now."""
        with self._changed:
            process = self._process if self._mounted else None
        if process is not None:
            for command in commands:
                process.send(command)

    @contextlib.contextmanager
    def freeze(self) -> Iterator[list[list[int]]]:
        """The absent extents, each an offset and a length; they stay absent inside.

        Raises:
            RestoreBusy: they did not stay absent, or no process says which they are.
        """
        with self._conversation:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._mounted or self._stopping.is_set(), _ANSWER_TIMEOUT
                )
                process = self._process if self._mounted else None
            if process is None:
                raise self._busy("its process is being started again")
            answer = self._ask(process, "still", "unfetched")
            try:
                yield answer["extents"]
            finally:
                end = self._ask(process, "go", "gone")
            if not end["in_time"]:
                raise self._busy("the snapshot took too long")

    @property
    def conversation(self) -> threading.Lock:
        """Held by a snapshot that does not need the process."""
        return self._conversation

    def ask_requests(self) -> tuple[RestoreProcess, dict[str, Any]] | None:
        """The process, and its answer about its requests; None: it can't be asked just now."""
        with self._changed:
            process = self._process if self._mounted else None
        if process is None or not self._conversation.acquire(blocking=False):
            return None
        try:
            return process, self._ask(process, "requests", "requests")
        except RestoreBusy:
            return None
        finally:
            self._conversation.release()

    def _ask(self, process: RestoreProcess, command: str, expected: str) -> dict[str, Any]:
        """Give a command, and return the event that answers it.

        Raises:
            RestoreBusy: none came.
        """
        with self._changed:
            self._answer = None
            process.send(command)
            self._changed.wait_for(
                lambda: self._answer is not None or self._process is not process, _ANSWER_TIMEOUT
            )
            answer = self._latest_answer()
        if answer is None or answer["event"] != expected:
            raise self._busy(f"{command!r} was answered by {answer}")
        return answer

    def _latest_answer(self) -> dict[str, Any] | None:
        return self._answer
