"""A thorough run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from tools.testing.records import Ended, Writer
from tools.testing.report import Report
from tools.testing.thorough import State, Work, all_work, row, sum_up

HOST = Work("host", "tests/unit/test_a.py")
UML = Work("uml", "tests/vm/test_b.py")
QEMU = Work("qemu", "tests/vm/test_b.py")


def write(state: State, work: Work, *outcomes: str) -> None:
    """Let tests with these outcomes have ended."""
    writer = Writer(state.record_of(work))
    for outcome in outcomes:
        name, _, result = outcome.partition(" ")
        writer.write(Ended(f"{work.file}::{name}", result, 60.0, 1000.0))  # type: ignore[arg-type]
    writer.close()


def test_what_runs_in_a_vm_runs_on_both_kernels() -> None:
    files = [QEMU.file, HOST.file, "tests/crash/test_c.py", "tests/system/test_d.py"]
    assert all_work(["unit", "crash", "vm"], files) == [
        *(UML, QEMU, HOST, Work("host", "tests/crash/test_c.py"))
    ]


def test_a_run_that_was_ended_goes_on(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    assert not state.is_resumed
    write(state, UML, "one passed")
    state.finish(UML)
    state = State(tmp_path / "state", "code")
    assert state.is_resumed
    assert state.done == {UML.name}
    assert state.result_of(UML).passed == 1


def test_other_code_begins_afresh_unless_insisted(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    write(state, UML, "one passed")
    state.finish(UML)
    assert State(tmp_path / "state", "other code", insist=True).done == {UML.name}
    assert State(tmp_path / "state", "code").done == {UML.name}
    state = State(tmp_path / "state", "other code")
    assert (state.is_resumed, state.done) == (False, set())
    assert state.result_of(UML).count == 0


def test_when_all_is_done_the_next_run_begins_afresh(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    state.finish(UML)
    state.forget()
    assert State(tmp_path / "state", "code", insist=True).done == set()


def test_a_test_counts_as_it_ended_the_last_time(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    write(state, UML, "one passed", "two failed", "three skipped", "two passed")
    result = state.result_of(UML)
    assert (result.passed, list(result.failed), len(result.skipped)) == (2, [], 1)
    assert row(UML, result).split() == ["2", "0", "1", "3:00", "uml", UML.file]


def test_the_machines_are_summed_up_apart(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    write(state, UML, "one passed")
    write(state, QEMU, "one failed")
    write(state, HOST, "one passed")
    report = Report()
    report.fail("unit", "pytest ended with 3", "why")
    results = sum_up(state, [UML, QEMU, HOST], report)
    assert {level: list(result.failed) for level, result in results.items()} == {
        "vm in uml": [],
        "vm in qemu": [f"qemu: {QEMU.file}::one"],
        "unit": ["unit: pytest ended with 3"],
    }


def test_the_state_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    state = State(tmp_path / "state", "code")
    state.finish(HOST)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["done"] == [HOST.name]
    assert not (tmp_path / "state" / "state.new").exists()
