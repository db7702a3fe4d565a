"""The level "vm": groups of files of tests/vm, each in a machine of its own, several at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from tools.testing import records
from tools.testing.durations import read_durations, seconds_of
from tools.testing.levels import DURATIONS, Choice, Job, pytest
from tools.testing.patience import patient
from tools.testing.running import Run
from tools.virtual import uml

#: What tests/vm/conftest.py expects.
DISKS = ("--disk", "8G", "--disk", "4G,plain", "--disk", "1G")
#: So many machines at once, each with one processor.
AT_ONCE = int(os.environ.get("LUNR_TEST_VMS", "2"))
#: Seconds of work that a machine gets at least: it takes some to start.
A_GROUP = 60.0
#: What tools/setup says when something can't be had here.
_LACKING = 69
#: Seconds that one test may take in a VM.
TEST_LIMIT = 600
#: Seconds after which a VM is ended.
LIMIT = 2400


def grouped(files: Mapping[str, float], least: float, at_once: int) -> list[list[str]]:
    """The files in groups for one machine each, what takes longest first.

    A group has about `least` seconds, or one file that takes longer; there are at
    least `at_once` groups, if there are so many files.

    >>> grouped({"a": 10, "b": 70, "c": 20, "d": 35, "e": 5}, 60, 2)
    [['b'], ['d', 'c', 'a'], ['e']]
    """
    least = min(least, sum(files.values()) / at_once)
    groups: list[list[str]] = []
    filled = least
    for file in sorted(files, key=lambda file: (-files[file], file)):
        if filled >= least:
            groups.append([])
            filled = 0.0
        groups[-1].append(file)
        filled += files[file]
    return groups


class Queue:
    """Machines that wait for their turn, and those that run."""

    def __init__(self, run: Run, choice: Choice, files: Mapping[str, float]) -> None:
        self._run, self._choice = run, choice
        self._groups = grouped(files, A_GROUP, AT_ONCE)
        self._begun = 0
        self.jobs: list[Job] = []

    def fill(self) -> list[Job]:
        """Start machines until enough of them run; those that were started."""
        running = sum(job.program.code() is None for job in self.jobs)
        fresh = [self._start() for _ in range(min(AT_ONCE - running, len(self._groups)))]
        self.jobs += fresh
        return fresh

    @property
    def waiting(self) -> int:
        return len(self._groups)

    def _start(self) -> Job:
        files = self._groups.pop(0)
        self._begun += 1
        name = f"vm-{self._begun}"
        share = self._run.folder / name
        share.mkdir()
        record = share / "record.jsonl"
        # So that no test hangs for ever.
        limit = str(round(patient(LIMIT)))
        start = ["tools/vm", "run", *DISKS, "--timeout", limit, "--share", str(share)]
        tests = [*pytest(record, self._choice), "-p", "no:cacheprovider", *files]
        argv = [*start, "--", *tests, "-o", f"timeout={TEST_LIMIT}", *self._choice.arguments]
        return Job("vm", name, self._run.start(name, argv), record)


class Preparation:
    """Fetches the VM's kernel if need be, finds out what is to run, and compiles it.

    Compiling Python takes long in a VM, and so does what pytest makes of test files.
    """

    def __init__(self, run: Run, choice: Choice) -> None:
        self._run, self._choice = run, choice
        self._record = run.folder / "vm-files.jsonl"
        self._set_up = run.start("vm-setup", ["tools/setup", "--vm"])
        collect = [*pytest(self._record, choice), "--collect-only", *choice.paths("vm")]
        compile_all = ["-m", "compileall", "-q", "lunr", "tests", "tools"]
        self._compiled = run.start("vm-compile", [sys.executable, *compile_all])
        self._collected = run.start(
            "vm-collect",
            [*collect, *choice.arguments],
            {"LUNR_VM": "1", "PYTHONDONTWRITEBYTECODE": ""},
        )

    def is_over(self) -> bool:
        parts = (self._set_up, self._compiled, self._collected)
        return all(part.code() is not None for part in parts)

    def reason(self) -> str:
        """Why there is no VM."""
        if self.is_lacking and uml.chosen_kernel() is not None:
            return ""
        return self._set_up.tail(5) if self._set_up.code() else ""

    @property
    def is_lacking(self) -> bool:
        """Whether there can be no VM here: without root, or without a network."""
        return self._set_up.code() == _LACKING

    def failures(self) -> list[records.Record]:
        """What is wrong with the files already."""
        told = list(records.Reader(self._record).read())
        return [one for one in told if not isinstance(one, records.Collected)]

    def files(self) -> dict[str, float]:
        """The files with tests that are to run, and the seconds that each may take."""
        known = read_durations(DURATIONS)
        return {
            file: seconds_of(file, known)
            for one in records.Reader(self._record).read()
            if isinstance(one, records.Collected)
            for file in one.files
        }
