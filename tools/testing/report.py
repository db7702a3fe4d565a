"""What tools/test says: how far it is, what fails, and the summary."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tools.testing import LEVELS
from tools.testing.records import Collected, Ended, Failed, Record, Result, Started, level_of

#: Seconds between two lines that say how far it is.
PACE = 30.0
#: How many of the slowest tests are named.
SLOWEST = 10
#: Characters of what the summary says of a failure; all of it was told when it happened.
LONGEST_REASON = 400
#: How pytest begins the line that names the place.
_PLACE = re.compile(r"\S+\.py:\d+:")


def clock(seconds: float) -> str:
    """Hours, if any, minutes and seconds.

    >>> clock(75.4), clock(7210)
    ('1:15', '2:00:10')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Report:
    """Hears of everything, says what is worth it at once, and sums up."""

    began: float = field(default_factory=time.time)
    results: dict[str, Result] = field(default_factory=dict)
    expected: int = 0
    running: dict[str, None] = field(default_factory=dict)
    #: Why a test failed, in a few words.
    reasons: dict[str, str] = field(default_factory=dict)
    _told: float = 0.0
    _done: int = 0

    def result(self, level: str) -> Result:
        return self.results.setdefault(level, Result())

    def say(self, text: str) -> None:
        """Say something, with the time since the begin."""
        print(f"{clock(time.time() - self.began):>6}  {text}", flush=True)

    def hear(self, source: str, record: Record) -> None:
        """Take in what a run of pytest, called `source`, tells."""
        match record:
            case Collected(files):
                self.expected += sum(files.values())
            case Started(id):
                self.running[id] = None
            case Failed(id, when, text):
                self.reasons.setdefault(id, reason_of(text))
                self.say(f"FAILED {id} ({source}, {when})")
                print(indented(text), flush=True)
            case Ended(id):
                self.running.pop(id, None)
                # What is no test, such as what the tests left over, is of no level.
                self.result(level_of(id) if "/" in id else source).add(record)

    def fail(self, level: str, what: str, text: str) -> None:
        """Tell of something that failed and is no test."""
        self.say(f"FAILED {level}: {what}")
        print(indented(text), flush=True)
        self.result(level).fail(f"{level}: {what}")

    def progress(self, waiting: str) -> None:
        """Say how far it is, now and then, and what is running when nothing else happens.

        Args:
            waiting: what else there is to do.
        """
        if time.time() - max(self._told, self.began) < PACE:
            return
        self._told = time.time()
        results = [result for level, result in self.results.items() if level != "style"]
        done, failed = sum(one.count for one in results), sum(len(one.failed) for one in results)
        if not self.expected:
            self.say("reading the tests")
        else:
            self.say(f"{done} of {self.expected} tests, {failed} failed{waiting}")
        if done == self._done:
            self.say_running()
        self._done = done

    def say_running(self) -> None:
        """Say which tests are being run."""
        for id in self.running:
            print(f"        in the middle of {id}", flush=True)

    def require(self, levels: Iterable[str]) -> None:
        """Count levels without a test as failed."""
        for level in levels:
            if not self.result(level).count:
                self.result(level).fail(f"{level}: no test ran")

    @property
    def has_failed(self) -> bool:
        return any(result.failed for result in self.results.values())


def indented(text: str) -> str:
    return "\n".join(f"        {line}".rstrip() for line in text.splitlines())


def reason_of(text: str) -> str:
    """Where a test failed, and the first line that pytest marks as the error.

    >>> reason_of(">       assert a == b\\nE       assert 1 == 2\\n\\na.py:7: AssertionError")
    'a.py:7: assert 1 == 2'
    """
    lines = text.splitlines()
    marked = [line[1:].strip() for line in lines if line.startswith("E  ")]
    place = next((found[0] for line in lines if (found := _PLACE.match(line))), "")
    said = next(iter(marked or filter(None, map(str.strip, lines))), "")
    return f"{place} {said}".strip()[:LONGEST_REASON]


def summary(
    results: Mapping[str, Result],
    left_out: Mapping[str, float] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> str:
    """The table of levels, the slowest tests, what was skipped or failed, and the line that counts.

    Args:
        results: by level.
        left_out: files with tests that there was no time for, and what they may take.
        reasons: why tests failed, in a few words.

    The seconds are those of all tests of a level together, and those from the begin of its first
    test to the end of its last: levels run side by side.
    """
    lines = ["", f"{'level':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}{'wall':>8}"]
    for level, one in results.items():
        counts = f"{one.passed:>8}{len(one.failed):>8}{len(one.skipped):>9}"
        lines.append(f"{level:<12}{counts}{one.seconds:>9.1f}{one.wall:>8.1f}")
    lines += ["", *slowest(results), *skips(results)]
    lines += omissions(left_out or {})
    for name in (name for one in results.values() for name in one.failed):
        lines.append(f"FAILED  {name}")
        if reason := (reasons or {}).get(name):
            lines.append(f"        {reason}")
    passed = sum(one.passed for one in results.values())
    failed = sum(len(one.failed) for one in results.values())
    skipped = sum(len(one.skipped) for one in results.values())
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


def omissions(left_out: Mapping[str, float]) -> list[str]:
    """The files with tests that there was no time for, by level."""
    lines = []
    for level in LEVELS:
        files = [file for file in left_out if level_of(file) == level]
        if files:
            seconds = sum(left_out[file] for file in files)
            lines.append(
                f"LEFT OUT for time: {len(files)} files of {level}, about {clock(seconds)}"
            )
            names = " ".join(file.removeprefix(f"tests/{level}/") for file in sorted(files))
            indent = " " * 12
            lines += textwrap.wrap(names, 100, initial_indent=indent, subsequent_indent=indent)
    return lines


def slowest(results: Mapping[str, Result]) -> list[str]:
    """The tests that took longest."""
    tests = {id: seconds for one in results.values() for id, seconds in one.tests.items()}
    first = sorted(tests, key=lambda id: -tests[id])[:SLOWEST]
    return [f"SLOW    {tests[id]:6.1f} s  {id}" for id in first if tests[id] >= 1]


def skips(results: Mapping[str, Result]) -> list[str]:
    """Each test that was skipped, under its reason."""
    reasons: dict[str, list[str]] = {}
    for one in results.values():
        for id, reason in one.skipped:
            reasons.setdefault(reason, []).append(id)
    return [
        line
        for reason, ids in sorted(reasons.items())
        for line in (f"SKIPPED {len(ids)}: {reason}", *(f"            {id}" for id in ids))
    ]
