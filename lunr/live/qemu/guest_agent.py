"""Freezing a guest's file systems by its agent (qemu-ga).

The guest controls the agent: it may not answer, answer nonsense, or be gone.
"""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Any

from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.qemu import qmp

logger = logging.getLogger(__name__)

#: Seconds that the guest has to freeze, and then to thaw.
PATIENCE = 20.0

#: Seconds after which the agent is told again to thaw.
_AGAIN = 5.0


class Agent:
    """A connection to the agent of a guest. One thread at a time."""

    def __init__(self, lines: qmp.LineReader) -> None:
        """Use a connection; see :meth:`open` for a new one."""
        self._lines = lines

    @classmethod
    def open(cls, path: Path, timeout: float = 5.0) -> Agent:
        """Connect to the socket `path` of the guest's channel, and make sure that it answers.

        Raises:
            errors.FreezeFailed: it does not answer.
        """
        try:
            agent = cls(qmp.LineReader(qmp.connect(path, timeout), str(path)))
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
        """Freeze all file systems, and return their number.

        Raises:
            errors.FreezeFailed: some may be frozen nevertheless: :meth:`thaw` them.
        """
        count = self._call("guest-fsfreeze-freeze", "freeze")
        if type(count) is not int:
            raise self._failed("freeze", "its answer makes no sense.")
        return count

    def thaw(self, patience: float | None = None) -> None:
        """Thaw all file systems, if any are frozen.

        The agent may be late, or still freezing. The command is sent before the agent answers
        an earlier one, and again until the agent confirms that nothing is frozen.

        Args:
            patience: seconds until that is given up; None: :data:`PATIENCE`.

        Raises:
            errors.FreezeFailed: the agent does not confirm that nothing is frozen.
        """
        patience = PATIENCE if patience is None else patience
        deadline = time.monotonic() + patience
        while not self._is_thawed(until := min(deadline, time.monotonic() + _AGAIN)):
            if time.monotonic() >= deadline:
                reason = f"it has not said so for {patience:g} seconds. They may be frozen still."
                raise self._failed("thaw", reason)
            time.sleep(max(0.0, min(1.0, until - time.monotonic())))  # it may have refused at once

    def _is_thawed(self, deadline: float) -> bool:
        """Tell the agent to thaw; return whether it confirms until `deadline` that it did."""
        self._lines.discard_received()
        commands = ({"execute": "guest-fsfreeze-thaw"}, {"execute": "guest-fsfreeze-status"})
        mark = self._send_marked("thaw", *commands)
        if not self._await_mark(mark, deadline, "thaw"):
            return False
        thawed, status = (self._receive(deadline, "thaw") for _ in commands)
        return thawed is not None and status is not None and status.get("return") == "thawed"

    def _sync(self, timeout: float) -> None:
        mark = self._send_marked("answer about")
        if not self._await_mark(mark, time.monotonic() + timeout, "answer about"):
            reason = "it does not answer: does qemu-ga run in the guest?"
            raise self._failed("answer about", reason)

    def _send_marked(self, action: str, *messages: dict[str, Any]) -> int:
        """Send a mark and then `messages`, and return the mark."""
        mark = secrets.randbits(31)
        sync = {"execute": "guest-sync", "arguments": {"id": mark}}
        self._send(action, sync, *messages)
        return mark

    def _await_mark(self, mark: int, deadline: float, action: str) -> bool:
        """Skip the answers to earlier clients, up to the mark.

        Returns:
            Whether `mark` came back until `deadline`.
        """
        while (answer := self._receive(deadline, action)) is not None:
            if answer.get("return") == mark:
                return True
        return False

    def _call(self, command: str, action: str) -> Any:
        self._send(action, {"execute": command})
        answer = self._receive(time.monotonic() + PATIENCE, action)
        if answer is None:
            raise self._failed(action, f"it has not answered for {PATIENCE:g} seconds.")
        if "return" not in answer:
            error = answer.get("error")
            reason = error.get("desc") if isinstance(error, dict) else None
            # Escaped: the guest must not control the terminal.
            raise self._failed(action, f"it says {ascii(reason)[:200]}.")
        return answer["return"]

    def _send(self, action: str, *messages: dict[str, Any]) -> None:
        try:
            self._lines.send(*messages)
        except LunrError as error:
            raise self._failed(action, error.fields["reason"]) from error

    def _receive(self, deadline: float, action: str) -> dict[str, Any] | None:
        try:
            return self._lines.receive(deadline)
        except LunrError as error:
            raise self._failed(action, error.fields["reason"]) from error

    def _failed(self, action: str, reason: str) -> errors.FreezeFailed:
        return errors.FreezeFailed(path=self._lines.path, action=action, reason=reason)
