"""Commands in and events out, as lines: over the standard streams, and over a unix socket.

A new connection to the socket first gets the last event of each kind, and each damaged
object. A reader that is too slow misses events.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

logger = logging.getLogger(__name__)

#: Events kept for a slow reader; it misses further ones.
_BACKLOG = 1000
_DAMAGED_KEPT = 1000


class Answer(Protocol):
    """A function that reports an event to the sender of a command only."""

    def __call__(self, event: str, **fields: object) -> None:
        """Report `event`."""


CommandHandler = Callable[[str, Answer], None]


class EventWriter:
    """Writes lines to a reader that may be slow, or gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_BACKLOG)
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()
        self.gone = False

    def put(self, line: str | None) -> None:
        """Queue a line; None ends the writer. A reader that is too slow misses lines."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)

    def end(self, seconds: float) -> None:
        """Write the queued lines, for at most `seconds`."""
        self.put(None)
        self._thread.join(seconds)

    def _write(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._stream.write(line)
                self._stream.flush()
        except (OSError, ValueError):  # the reader or this process has closed the stream
            self.gone = True


class Control:
    """The source of commands, and the destination of events."""

    def __init__(self, commands: IO[str], events: IO[str]) -> None:
        """Use these streams, besides connections to the socket."""
        self._commands = commands
        self._lock = threading.Lock()
        self._sinks = [EventWriter(events)]
        self._kept: dict[str, str] = {}
        self._path: Path | None = None
        self._handler: CommandHandler | None = None

    def report(self, event: str, **fields: Any) -> None:
        """Report an event to all readers."""
        line = _line(event, fields)
        kind = f"{event} {fields['object']}" if "object" in fields else event
        with self._lock:
            if event != "damaged" or len(self._kept) < _DAMAGED_KEPT:
                self._kept[kind] = line
            self._sinks = [sink for sink in self._sinks if not sink.gone]
            for sink in self._sinks:
                sink.put(line)

    def open(self, path: Path) -> None:
        """Listen on a unix socket at `path`, which only this user may connect to.

        Raises:
            OSError: it can't be opened.
        """
        path.unlink(missing_ok=True)  # of a killed process
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(previous)
        listening.listen()
        self._path = path
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def listen(self, handler: CommandHandler) -> None:
        """Start to call `handler` with each command, and the function that answers its sender.

        The end of standard input is the command of an empty line, unless there is a socket.
        """
        self._handler = handler
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def close(self) -> None:
        """Write the queued events, and remove the socket."""
        for sink in self._sinks:
            sink.end(2.0)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        sink = self._sinks[0]
        self._handle_lines(self._commands, sink)
        if self._path is None and self._handler is not None:
            self._handler("", _answering(sink))

    def _handle_lines(self, lines: IO[str], sink: EventWriter) -> None:
        for line in lines:
            if self._handler is None:
                sink.put(_line("refused", {"code": "conflict", "reason": "It is not mounted yet."}))
            else:
                self._handler(line, _answering(sink))

    def _accept(self, listening: socket.socket) -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, connection.makefile("w") as events, connection.makefile() as commands:
            sink = EventWriter(events)
            with self._lock:
                for line in self._kept.values():
                    sink.put(line)
                self._sinks.append(sink)
            try:
                self._handle_lines(commands, sink)
            except OSError as error:
                logger.info("A connection broke: %s", error)
            with self._lock:
                sink.gone = True
            sink.end(1.0)


def _answering(sink: EventWriter) -> Answer:
    def answer(event: str, **fields: object) -> None:
        sink.put(_line(event, fields))

    return answer


def _line(event: str, fields: dict[str, Any]) -> str:
    return json.dumps({"event": event, **fields}) + "\n"
