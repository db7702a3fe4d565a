"""What a run of pytest tells while it goes on: a file with a line of JSON for each event.

The plugin writes it (:mod:`tools.testing.plugin`), also in a VM; tools/test reads it as it grows.
A line is written at once and holds for itself, so that what was told before a machine hangs or
dies is known all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass
class Collected:
    """The tests that are going to run: how many in each file."""

    files: dict[str, int]


@dataclass
class Started:
    """A test begins."""

    id: str


@dataclass
class Failed:
    """A test, or the reading of a file with tests, just failed; `text` says why."""

    id: str
    when: str
    text: str


@dataclass
class Ended:
    """A test is over.

    Attributes:
        reason: why it was skipped.
        seconds: what it took, with its fixtures.
        at: when it ended, in seconds since the epoch.
    """

    id: str
    outcome: Outcome
    seconds: float
    at: float
    reason: str = ""


Record = Collected | Started | Failed | Ended

_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Collected, Started, Failed, Ended)
}


class Writer:
    """Writes records into a file, behind those that are in it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: Record) -> None:
        line = json.dumps({"kind": type(record).__name__, **asdict(record)}) + "\n"
        os.write(self._fd, line.encode())
        if "LUNR_VM" in os.environ:  # whose kernel would keep it for a while
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def parse(line: str) -> Record:
    """The record in a line.

    >>> parse('{"kind": "Started", "id": "tests/unit/test_architecture.py::test_no_shell"}')
    Started(id='tests/unit/test_architecture.py::test_no_shell')
    """
    fields: dict[str, Any] = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)


class Reader:
    """Reads a file of records that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Record]:
        """What was written since the last call; a line that is not whole yet comes later."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield parse(line.decode())


@dataclass
class Result:
    """How the tests of one level ended.

    Attributes:
        failed: the names of the tests that failed, each once.
        skipped: (name, reason).
        tests: the seconds of each test.
        began, ended: in seconds since the epoch.
    """

    passed: int = 0
    failed: dict[str, None] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    tests: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0

    @property
    def count(self) -> int:
        return self.passed + len(self.failed) + len(self.skipped)

    @property
    def seconds(self) -> float:
        """What all tests took together."""
        return sum(self.tests.values())

    @property
    def wall(self) -> float:
        """From the begin of the first to the end of the last."""
        return self.ended - self.began

    def add(self, record: Ended) -> None:
        """Count a test. One that failed stays failed, whatever ends after it."""
        match record.outcome:
            case "failed":
                self.failed[record.id] = None
            case "skipped":
                self.skipped.append((record.id, record.reason))
            case "passed":
                self.passed += 1
        self.tests[record.id] = record.seconds
        self.span(record.at - record.seconds, record.at)

    def merge(self, other: Result, prefix: str = "") -> None:
        """Count all of `other` too, whose tests get a `prefix` to their names."""
        self.passed += other.passed
        self.failed.update({f"{prefix}{id}": None for id in other.failed})
        self.skipped += [(f"{prefix}{id}", reason) for id, reason in other.skipped]
        self.tests.update({f"{prefix}{id}": seconds for id, seconds in other.tests.items()})
        if other.tests:
            self.span(other.began, other.ended)

    def fail(self, name: str) -> None:
        """Count something as failed that is no test."""
        self.failed[name] = None
        self.span(time.time(), time.time())

    def span(self, begin: float, end: float) -> None:
        """Something of it happened from `begin` to `end`."""
        self.began = min(self.began or begin, begin)
        self.ended = max(self.ended, end)


def level_of(id: str) -> str:
    """The level of a test, or of a file with tests.

    >>> level_of("tests/unit/test_architecture.py::test_no_shell")
    'unit'
    """
    parts = id.split("::")[0].split("/")
    return parts[1] if parts[0] == "tests" and len(parts) > 1 else parts[0]


def file_of(id: str) -> str:
    """The file of a test."""
    return id.split("::")[0]
