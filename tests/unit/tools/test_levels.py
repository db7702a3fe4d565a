"""The summary tells what happened."""

from __future__ import annotations

import pytest

from tools import levels

REPORT = b"""<?xml version="1.0"?>
<testsuites><testsuite name="pytest" errors="2" failures="1" skipped="1" tests="6">
<testcase classname="tests.a" name="good"/>
<testcase classname="tests.a" name="bad"><failure message="assert 0">...</failure></testcase>
<testcase classname="tests.a" name="bad"><error message="teardown">...</error></testcase>
<testcase classname="tests.a" name="untidy"/>
<testcase classname="tests.a" name="untidy"><error message="teardown">...</error></testcase>
<testcase classname="tests.a" name="poor"><skipped message="needs tgtd">...</skipped></testcase>
</testsuite></testsuites>"""


def test_each_test_is_counted_once_as_its_worst() -> None:
    result = levels.read_report(REPORT)
    assert result.passed == 1
    assert result.failed == ["tests.a::bad", "tests.a::untidy"]
    assert result.skipped == ["tests.a::poor: needs tgtd"]


def test_the_summary_names_what_was_skipped_and_ends_with_the_count() -> None:
    lines = levels.summary({"unit": levels.read_report(REPORT)}).splitlines()
    assert "SKIPPED tests.a::poor: needs tgtd" in lines
    assert "FAILED  tests.a::bad" in lines
    assert lines[-1] == "1 passed, 2 failed, 1 skipped"


def test_an_unknown_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert levels.main(["unit", "nosuch"]) == 2
    assert "no level nosuch" in capsys.readouterr().out


def test_a_level_that_takes_too_long_has_failed() -> None:
    assert levels.late(levels.VM_LIMIT) == []
    (said,) = levels.late(levels.VM_LIMIT + 60)
    result = levels.Result(passed=5, failed=[said])
    assert f"took {levels.VM_LIMIT + 60} s, at most {levels.VM_LIMIT}" in levels.summary(
        {"vm": result}
    )


def test_each_file_is_run_in_one_vm() -> None:
    files = [path for paths in levels.VMS.values() for path in paths]
    assert len(files) == len(set(files))
    assert all((levels.TOP / "tests" / "vm" / path).is_file() for path in files)
    assert levels.files_of("kills")[0] == "tests/vm/service/test_kill.py"
    assert levels.files_of("rest") == ["tests/vm", *(f"--ignore=tests/vm/{path}" for path in files)]
