"""What happens is told at once, and the summary tells it all again."""

from __future__ import annotations

import pytest

from tools.testing.records import Collected, Ended, Failed, Record, Result
from tools.testing.report import Report, summary

TOLD: list[Record] = [
    Collected({"tests/unit/test_a.py": 3, "tests/vm/test_b.py": 1}),
    Ended("tests/unit/test_a.py::good", "passed", 2.5, 103.0),
    Failed(
        "tests/unit/test_a.py::bad",
        "call",
        ">       assert 0\nE       assert 0\n\ntests/unit/test_a.py:7: AssertionError",
    ),
    Ended("tests/unit/test_a.py::bad", "failed", 4.0, 107.0),
    Ended("tests/unit/test_a.py::poor", "skipped", 0.0, 107.0, "needs tgtd"),
    Ended("tests/vm/test_b.py::poor", "skipped", 0.0, 109.0, "needs tgtd"),
    Ended("tests/vm/test_b.py::other", "passed", 1.0, 119.0),
]


def heard(told: list[Record]) -> Report:
    report = Report()
    for record in told:
        report.hear("host", record)
    return report


def test_a_failure_is_told_at_once_with_its_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    heard(TOLD[:3])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("FAILED tests/unit/test_a.py::bad (host, call)")
    assert lines[1] == "        >       assert 0"
    assert lines[-1] == "        tests/unit/test_a.py:7: AssertionError"


def test_the_summary_tells_all() -> None:
    report = heard(TOLD)
    lines = summary(report.results, reasons=report.reasons).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["unit", "1", "1", "1", "6.5", "6.5"],
        ["vm", "1", "0", "1", "1.0", "10.0"],
    ]
    slow = [line.split()[-1].split("::")[1] for line in lines if line.startswith("SLOW")]
    assert slow == ["bad", "good", "other"]
    skipped = lines.index("SKIPPED 2: needs tgtd")
    assert [line.strip() for line in lines[skipped + 1 : skipped + 3]] == [
        "tests/unit/test_a.py::poor",
        "tests/vm/test_b.py::poor",
    ]
    assert lines[-3:] == [
        "FAILED  tests/unit/test_a.py::bad",
        "        tests/unit/test_a.py:7: assert 0",
        "2 passed, 1 failed, 2 skipped",
    ]


def test_what_is_no_test_fails_the_run_too(capsys: pytest.CaptureFixture[str]) -> None:
    report = heard([Ended("what the tests left over", "failed", 0.0, 100.0)])
    assert report.has_failed
    report = Report()
    report.fail("vm", "pytest ended with 124", "the end of its output")
    assert report.has_failed
    assert "the end of its output" in capsys.readouterr().out
    assert summary(report.results).endswith(
        "FAILED  vm: pytest ended with 124\n0 passed, 1 failed, 0 skipped"
    )


def test_a_level_without_a_test_has_failed() -> None:
    report = heard(TOLD)
    report.require(["unit", "vm"])
    assert list(report.results["vm"].failed) == []
    report.require(["crash"])
    assert list(report.results["crash"].failed) == ["crash: no test ran"]


def test_what_was_skipped_is_no_failure() -> None:
    report = Report(results={"vm": Result(skipped=[("vm", "needs a network")])})
    report.require(["vm"])
    assert not report.has_failed
