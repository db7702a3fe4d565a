"""The levels of tests, and the programs that run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.testing import records
from tools.testing.running import BIN, CACHE, Program, Run

HOST = ("unit", "functional", "system", "crash")
#: What took how long in the runs before, by file.
DURATIONS = CACHE / "durations.json"
#: Tests wait a lot: more of them at once than there are processors. With three on two processors a
#: third of the time of the last minutes was idle.
WORKERS = int(os.environ.get("LUNR_TEST_WORKERS", (os.cpu_count() or 1) + 2))
CHECKS: dict[str, list[str]] = {
    "ruff format": ["ruff", "format", "--check", "--quiet", "--diff", "."],
    "ruff check": ["ruff", "check", "--quiet", "."],
    "mypy lunr": ["mypy"],
    "mypy tools": ["mypy", "--package", "tools"],
}
#: pytest's exit codes that say nothing which its records do not say.
_PASSED, _FAILED, _NO_TESTS = 0, 1, 5


@dataclass
class Choice:
    """What is to be run, and how.

    Attributes:
        levels: some of `LEVELS`.
        arguments: what is given to each pytest.
        files: only these files with tests, if given.
        left_out: files with tests that there is no time for, and the seconds that they would take.
        seed: of a random order, if given.
        is_verbose: show what the programs write.
        is_thorough: run all that takes long, too.
        resumes: go on with a thorough run of other code.
    """

    levels: Sequence[str]
    arguments: Sequence[str] = ()
    files: Sequence[str] | None = None
    left_out: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    is_verbose: bool = False
    is_thorough: bool = False
    resumes: bool = False

    def paths(self, *levels: str) -> list[str]:
        """What of these levels pytest is to run."""
        chosen = [level for level in levels if level in self.levels]
        if self.files is not None:
            return [file for file in self.files if records.level_of(file) in chosen]
        return [f"tests/{level}" for level in chosen]


class Job:
    """A program that runs tests, and what it tells."""

    def __init__(self, level: str, name: str, program: Program, record: Path) -> None:
        self.level, self.name = level, name
        self.program = program
        self._reader = records.Reader(record)
        self.started: dict[str, None] = {}
        self.has_failed = False

    def read(self) -> list[records.Record]:
        """What it told since the last call."""
        told = list(self._reader.read())
        for one in told:
            if isinstance(one, records.Started):
                self.started[one.id] = None
            elif isinstance(one, records.Ended):
                self.started.pop(one.id, None)
                self.has_failed |= one.outcome == "failed"
        return told

    def skip(self) -> None:
        """Leave out what is in the file of its records already."""
        list(self._reader.read())

    def failure(self) -> str:
        """What went wrong beside the tests, once the program has ended."""
        code = self.program.code()
        if code in (_PASSED, _NO_TESTS) and not self.started:
            return ""
        if code == _FAILED and self.has_failed:
            return ""
        in_work = f", in the middle of {', '.join(self.started)}" if self.started else ""
        return f"pytest ended with {code}{in_work}"


class StyleCheck:
    """One of `CHECKS`."""

    def __init__(self, name: str, program: Program) -> None:
        self.name, self.program = name, program


def start_style(run: Run) -> list[StyleCheck]:
    """Check the form of the code."""
    return [
        StyleCheck(name, run.start(name.replace(" ", "-"), [BIN / command[0], *command[1:]]))
        for name, command in CHECKS.items()
    ]


def pytest(record: Path, choice: Choice) -> list[str]:
    """The command, but for what is to be run."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "tools.testing.plugin"]
    command += [f"--record={record}", f"--durations-of={DURATIONS}"]
    if choice.seed is not None:
        command.append(f"--random-seed={choice.seed}")
    return command


def start_host(run: Run, choice: Choice) -> Job | None:
    """Run the tests of the levels that need no VM, all in one pytest with several workers."""
    paths = choice.paths(*HOST)
    if not paths:
        return None
    record = run.folder / "host.jsonl"
    argv = [*pytest(record, choice), f"--basetemp={run.folder / 'h'}", "-n", str(WORKERS)]
    return Job("host", "host", run.start("host", [*argv, *paths, *choice.arguments]), record)
