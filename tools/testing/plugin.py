"""What pytest does for tools/test: tells what happens at once, and runs what takes long first.

``-p tools.testing.plugin`` loads it. It works with pytest-xdist and without.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tools.testing import RECORDER, records
from tools.testing.durations import read_durations, seconds_of


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lunr")
    group.addoption("--record", type=Path, help="write what happens there (tools.testing.records)")
    group.addoption("--durations-of", type=Path, help="what files took before: JSON")
    group.addoption("--random-seed", type=int, help="run files, and tests in them, in random order")
    group.addoption("--skip-recorded", type=Path, help="leave out what passed, as recorded there")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path), RECORDER)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the items into the order in which they are to begin, the same in all workers."""
    recorded = config.getoption("--skip-recorded")
    if recorded is not None:
        _skip(config, items, recorded)
    seed = config.getoption("--random-seed")
    if seed is not None:
        items[:] = shuffled(items, seed)
        return
    path = config.getoption("--durations-of")
    known = read_durations(path) if path is not None else {}
    seconds = {file: seconds_of(file, known) for file in {_file(item) for item in items}}
    items.sort(key=lambda item: (-seconds[_file(item)], _file(item)))


def _file(item: pytest.Item) -> str:
    return records.file_of(item.nodeid)


def _skip(config: pytest.Config, items: list[pytest.Item], path: Path) -> None:
    done = {
        one.id
        for one in records.Reader(path).read()
        if isinstance(one, records.Ended) and one.outcome != "failed"
    }
    if left_out := [item for item in items if item.nodeid in done]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in done]


def shuffled(items: Sequence[pytest.Item], seed: int) -> list[pytest.Item]:
    """`items` in random order, those of a file together."""
    rng = random.Random(seed)
    files: dict[str, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        files.setdefault(_file(item), []).append(item)
    names = sorted(files)
    rng.shuffle(names)
    for name in names:
        rng.shuffle(files[name])
    return [item for name in names for item in files[name]]


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Each file to one worker, in the order of the items; a worker gets the next file late.

    A worker wants to know of one more test than it runs. The original keeps two or more ahead, so
    that a short file waits behind a long one while another worker has nothing to do.
    """

    def _reschedule(self, node: Any) -> None:
        if node.shutting_down or not self.workqueue:
            super()._reschedule(node)
        elif self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)

    def remove_node(self, node: Any) -> str | None:
        """Give what a worker that died had left to others, but for the test that it died in.

        The original runs that one again and again, until no worker may be started any more.
        """
        units: dict[str, dict[str, bool]] = self.assigned_work.pop(node)
        left = [(name, id) for name, unit in units.items() for id, done in unit.items() if not done]
        if not left:
            return None
        name, crashed = left[0]
        units[name][crashed] = True
        self.workqueue.update({name: units[name] for name, _ in left[1:]})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


class Recorder:
    """Writes records of what happens; with pytest-xdist, in the process that the workers tell."""

    def __init__(self, path: Path) -> None:
        self._writer = records.Writer(path)
        self._tests: dict[str, records.Ended] = {}
        self._is_collected = False

    def fail(self, name: str, text: str) -> None:
        """Count something as failed that is no test."""
        self._writer.write(records.Failed(name, "at the end", text))
        self._writer.write(records.Ended(name, "failed", 0.0, time.time()))

    def _collect(self, ids: Sequence[str]) -> None:
        if not self._is_collected:
            self._is_collected = True
            self._writer.write(records.Collected(dict(Counter(map(records.file_of, ids)))))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items or not session.config.getoption("numprocesses", None):
            self._collect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._collect(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            name = report.nodeid or "collection"
            if name not in self._tests:  # each worker tells it
                self._tests[name] = records.Ended(name, "failed", 0.0, time.time())
                self._writer.write(records.Failed(name, "collect", report.longreprtext))
                self._writer.write(self._tests[name])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._writer.write(records.Started(nodeid))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(
            report.nodeid, records.Ended(report.nodeid, "passed", 0.0, 0.0)
        )
        test.seconds += report.duration
        if report.failed:
            test.outcome = "failed"
            self._writer.write(records.Failed(report.nodeid, str(report.when), text_of(report)))
        elif report.skipped and test.outcome == "passed":
            test.outcome = "skipped"
            test.reason = reason_of(report)
        # A worker that died reports with a phase of its own: nothing comes after it.
        if report.when not in ("setup", "call"):
            test.at = time.time()
            self._writer.write(test)
            del self._tests[report.nodeid]


def text_of(report: pytest.TestReport) -> str:
    """Why it failed, and what the test and the services wrote."""
    sections = [f"--- {title} ---\n{content.rstrip()}" for title, content in report.sections]
    return "\n".join([report.longreprtext.rstrip(), *sections])


def reason_of(report: pytest.TestReport) -> str:
    """Why it was skipped."""
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext
