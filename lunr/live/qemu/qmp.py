"""The QEMU machine protocol, as a client.

Lines of JSON over a unix socket (docs/interop/qmp-spec.rst of QEMU). The library
`qemu.qmp` is for asyncio and can neither pass file descriptors nor share its
connection with another process, which :mod:`lunr.live.qemu.guard` is about.
"""

from __future__ import annotations

import array
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lunr.common import strict_json
from lunr.live import errors

logger = logging.getLogger(__name__)

#: Seconds that QEMU has for a command, unless the caller says otherwise.
PATIENCE = 30.0

#: Events that are kept for a later :meth:`Monitor.wait`.
_KEPT_EVENTS = 1000

_PIECE = 1 << 16
#: The longest line that is accepted. The peer may be a guest, which may be hostile.
_LONGEST = 16 << 20


class LineReader:
    """JSON objects, one a line, over a connected stream socket. One thread at a time.

    Attributes:
        path: the peer's, for messages.
        sock: the socket.
    """

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.sock = sock
        self.path = path
        self._buffer = b""

    def send(self, *messages: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send `messages` at once, and open files with them (unix(7), SCM_RIGHTS).

        Raises:
            errors.MonitorUnavailable: the peer is gone.
        """
        data = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        passed = array.array("i", descriptors)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if descriptors else []
        try:
            sent = self.sock.sendmsg([data], rights)
            self.sock.sendall(data[sent:])
        except OSError as error:
            raise errors.MonitorUnavailable(
                path=self.path, reason=f"{error.strerror or error}."
            ) from error

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next object; None if none comes until `deadline` (on the monotonic clock).

        Raises:
            errors.MonitorUnavailable: the peer is gone.
        """
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if message := _parse(line):
                    return message
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if len(self._buffer) > _LONGEST:
                raise errors.MonitorUnavailable(path=self.path, reason="its line has no end.")
            try:
                self.sock.settimeout(left)
                piece = self.sock.recv(_PIECE)
            except TimeoutError:
                return None
            except OSError as error:
                raise errors.MonitorUnavailable(path=self.path, reason=f"{error}.") from error
            if not piece:
                raise errors.MonitorUnavailable(path=self.path, reason="it hung up.")
            self._buffer += piece

    def discard_received(self) -> None:
        """Discard the bytes that were received and not read."""
        self._buffer = b""


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object in `line`, or None: a connection taken over may begin amid a line."""
    try:
        return strict_json.load_object(line, _LONGEST + _PIECE)
    except ValueError:
        return None


def connect(path: Path, timeout: float) -> socket.socket:
    """A socket that is connected to `path`.

    Raises:
        errors.MonitorUnavailable: nothing listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        reason = f"{error.strerror or error}."
        raise errors.MonitorUnavailable(path=path, reason=reason) from error
    return sock


def _read_greeting(lines: LineReader, timeout: float) -> tuple[int, ...]:
    """The version in the greeting of a QEMU."""
    greeting = lines.receive(time.monotonic() + timeout)
    if greeting is None:
        raise errors.MonitorUnavailable(path=lines.path, reason="another client uses it.")
    try:
        version = greeting["QMP"]["version"]["qemu"]
        return int(version["major"]), int(version["minor"]), int(version["micro"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.MonitorUnavailable(path=lines.path, reason="that is no QMP.") from error


class Monitor:
    """A connection to a QEMU. One thread at a time.

    Attributes:
        version: QEMU's, as (7, 2, 22); () when the connection was taken over.
    """

    def __init__(self, lines: LineReader, version: tuple[int, ...] = ()) -> None:
        """Use a connection that is past its greeting; see :meth:`open` for a new one."""
        self.version = version
        self._lines = lines
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._count = 0
        # Another process may have used this connection before.
        self._mark = f"{id(self):x}-{time.monotonic_ns():x}"

    @classmethod
    def open(cls, path: Path, timeout: float = 10.0) -> Monitor:
        """Connect to the QMP socket `path`.

        Raises:
            errors.MonitorUnavailable: there is no QEMU, or another client has its monitor.
        """
        lines = LineReader(connect(path, timeout), str(path))
        try:
            version = _read_greeting(lines, timeout)
            monitor = cls(lines, version)
            monitor.execute("qmp_capabilities")
        except BaseException:
            lines.sock.close()
            raise
        return monitor

    def close(self) -> None:
        """Hang up."""
        self._lines.sock.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor of the connection, for another process to take over."""
        return self._lines.sock.fileno()

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        descriptor: int | None = None,
        timeout: float = PATIENCE,
    ) -> Any:
        """Execute `command` and return QEMU's answer.

        A late answer is dropped; the next command can be given at once.

        Args:
            command: of the QMP reference.
            arguments: its arguments.
            descriptor: an open file to pass (for ``getfd`` and ``add-fd``).
            timeout: seconds.

        Raises:
            errors.CommandRefused: QEMU refuses.
            errors.MonitorSilent: QEMU does not answer.
            errors.MonitorUnavailable: QEMU is gone.
        """
        message = self._message(command, arguments or {})
        passed = () if descriptor is None else (descriptor,)
        self._lines.send(message, descriptors=passed)
        return self._answer(message, timeout)

    def execute_all(
        self, commands: Sequence[tuple[str, dict[str, Any]]], timeout: float = PATIENCE
    ) -> None:
        """Send all of `commands` (and their arguments) at once.

        QEMU executes one after the other, also those after a refused one. It does so even if
        this process dies, as long as another process has the connection.

        Raises:
            errors.CommandRefused: QEMU refused a command; the first error is raised.
            errors.MonitorSilent, errors.MonitorUnavailable: as :meth:`execute`.
        """
        messages = [self._message(command, arguments) for command, arguments in commands]
        self._lines.send(*messages)
        refused: errors.CommandRefused | None = None
        for message in messages:
            try:
                self._answer(message, timeout)
            except errors.CommandRefused as error:
                refused = refused or error
        if refused is not None:
            raise refused

    def _message(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        mark = f"{self._mark}-{self._count}"
        return {"execute": command, "arguments": arguments, "id": mark}

    def _answer(self, message: dict[str, Any], timeout: float) -> Any:
        command = message["execute"]
        deadline = time.monotonic() + timeout
        while (answer := self._lines.receive(deadline)) is not None:
            if "event" in answer:
                self._events.append(answer)
            elif answer.get("id") == message["id"]:
                if "error" in answer:
                    error = answer["error"] if isinstance(answer["error"], dict) else {}
                    reason = error.get("desc", "it does not say why.")
                    raise errors.CommandRefused(command=command, reason=reason)
                return answer.get("return")
        raise errors.MonitorSilent(path=self._lines.path, command=command, timeout=timeout)

    def forget_events(self) -> None:
        """Discard the events until now."""
        self._events.clear()

    def wait(
        self, matches: Callable[[dict[str, Any]], bool], what: str, timeout: float = PATIENCE
    ) -> dict[str, Any]:
        """The first event since `forget_events` that `matches`; wait for it if necessary.

        Raises:
            errors.MonitorSilent: it did not happen in time; the message names `what`.
            errors.MonitorUnavailable: QEMU is gone.
        """
        deadline = time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.popleft()
                if matches(event):
                    return event
            answer = self._lines.receive(deadline)
            if answer is None:
                raise errors.MonitorSilent(path=self._lines.path, command=what, timeout=timeout)
            if "event" in answer:
                self._events.append(answer)
