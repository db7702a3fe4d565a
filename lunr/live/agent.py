"""Freezing a guest's file systems, by the agent in it (qemu-ga).

The agent is in the guest's hands: it may not answer, answer nonsense, or be gone.
"""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Any

from lunr.common.errors import LunrError
from lunr.live import errors, qmp

logger = logging.getLogger(__name__)

#: Seconds that the guest has to freeze, and then to thaw.
PATIENCE = 20.0


class Agent:
    """A connection to the agent of a guest. One thread at a time."""

    def __init__(self, lines: qmp.Lines) -> None:
        """Go on with a connection; see :meth:`open` for a new one."""
        self._lines = lines

    @classmethod
    def open(cls, path: Path, timeout: float = 5.0) -> Agent:
        """Connect to the socket `path` of the guest's channel, and see whether somebody is there.

        Raises:
            errors.FreezeFailed: nobody is.
        """
        try:
            agent = cls(qmp.Lines(qmp.connect(path, timeout), str(path)))
        except errors.MonitorUnavailable as error:
            reason = error.fields["reason"]
            raise errors.FreezeFailed(path=path, action="freeze", reason=reason) from error
        try:
            agent._sync(timeout)
        except BaseException:
            agent.close()
            raise
        return agent

    def close(self) -> None:
        """Hang up."""
        self._lines.sock.close()

    def fileno(self) -> int:
        """The descriptor of the connection, for another process to take over."""
        return self._lines.sock.fileno()

    def freeze(self) -> int:
        """Freeze all file systems; how many there were.

        Raises:
            errors.FreezeFailed: some may be frozen all the same: :meth:`thaw` them.
        """
        count = self._call("guest-fsfreeze-freeze", "freeze")
        if type(count) is not int:
            raise self._failed("freeze", "its answer makes no sense.")
        return count

    def thaw(self) -> None:
        """Thaw what is frozen; fine when nothing is.

        Raises:
            errors.FreezeFailed: the agent does not say that it did.
        """
        self._lines.drop()
        self._sync(PATIENCE)  # an answer to freeze may still be on its way
        self._call("guest-fsfreeze-thaw", "thaw")

    def _sync(self, timeout: float) -> None:
        """Skip what was for others: the agent answers each client that was there before."""
        mark = secrets.randbits(31)
        self._send({"execute": "guest-sync", "arguments": {"id": mark}}, "answer about")
        deadline = time.monotonic() + timeout
        while (answer := self._receive(deadline, "answer about")) is not None:
            if answer.get("return") == mark:
                return
        raise self._failed("answer about", "it does not answer: does qemu-ga run in the guest?")

    def _call(self, command: str, action: str) -> Any:
        self._send({"execute": command}, action)
        answer = self._receive(time.monotonic() + PATIENCE, action)
        if answer is None:
            raise self._failed(action, f"it has not answered for {PATIENCE:g} seconds.")
        if "return" not in answer:
            told = answer.get("error")
            reason = told.get("desc") if isinstance(told, dict) else None
            # As it is, it could write anything to somebody's terminal.
            raise self._failed(action, f"it says {ascii(reason)[:200]}.")
        return answer["return"]

    def _send(self, message: dict[str, Any], action: str) -> None:
        try:
            self._lines.send(message)
        except LunrError as error:
            raise self._failed(action, error.fields["reason"]) from error

    def _receive(self, deadline: float, action: str) -> dict[str, Any] | None:
        try:
            return self._lines.receive(deadline)
        except LunrError as error:
            raise self._failed(action, error.fields["reason"]) from error

    def _failed(self, action: str, reason: str) -> errors.FreezeFailed:
        return errors.FreezeFailed(path=self._lines.path, action=action, reason=reason)
