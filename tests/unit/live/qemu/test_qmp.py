"""The protocol, spoken with a socket that says what QEMU, or a broken one, might."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lunr.live import errors
from lunr.live.qemu.qmp import LineReader, Monitor


def pair(answer: Callable[[dict[str, Any]], list[bytes]]) -> tuple[LineReader, threading.Thread]:
    """A connection to a thread that gives `answer` to each message."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        # The other side may have heard enough.
        with contextlib.suppress(ConnectionError), theirs, theirs.makefile("rb") as messages:
            for line in messages:
                for part in answer(json.loads(line)):
                    theirs.sendall(part)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return LineReader(ours, "here"), thread


def line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def test_answers_in_pieces_between_events() -> None:
    def answer(message: dict[str, Any]) -> list[bytes]:
        whole = line(event="RESUME") + line(**{"return": {"x": 1}}, id=message["id"])
        return [whole[:5], whole[5:40], whole[40:]]

    lines, _ = pair(answer)
    with Monitor(lines) as monitor:
        assert monitor.execute("query-x") == {"x": 1}
        assert monitor.wait(lambda event: event["event"] == "RESUME", "RESUME")
        with pytest.raises(errors.MonitorSilent, match="STOP"):
            monitor.wait(lambda event: False, "STOP", timeout=0.05)


@pytest.mark.parametrize("error", ["no", None, ["desc"], {}])
def test_a_refusal_that_says_nothing(error: object) -> None:
    lines, _ = pair(lambda message: [line(error=error, id=message["id"])])
    with Monitor(lines) as monitor, pytest.raises(errors.CommandRefused, match="does not say why"):
        monitor.execute("query-x")


def test_a_late_answer_is_not_the_next_ones() -> None:
    late: list[bytes] = []

    def answer(message: dict[str, Any]) -> list[bytes]:
        late.append(line(**{"return": message["execute"]}, id=message["id"]))
        return [] if len(late) == 1 else late

    lines, _ = pair(answer)
    with Monitor(lines) as monitor:
        with pytest.raises(errors.MonitorSilent, match="first"):
            monitor.execute("first", timeout=0.05)
        assert monitor.execute("second") == "second"


def test_a_connection_taken_over_in_the_middle_of_an_answer() -> None:
    def answer(message: dict[str, Any]) -> list[bytes]:
        rest = b'rn": {}, "id": "of another"}\n' + line(**{"return": 1}, id="of another")
        return [rest, line(**{"return": 2}, id=message["id"])]

    lines, _ = pair(answer)
    with Monitor(lines) as monitor:
        assert monitor.execute("cont") == 2


def test_a_refusal_and_an_end() -> None:
    def answer(message: dict[str, Any]) -> list[bytes]:
        return [line(error={"class": "GenericError", "desc": "no such disk"}, id=message["id"])]

    lines, _ = pair(answer)
    with Monitor(lines) as monitor:
        with pytest.raises(errors.CommandRefused, match="no such disk"):
            monitor.execute("blockdev-add")
        lines.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(errors.MonitorUnavailable):
            monitor.execute("blockdev-add")
