"""What the arguments of tools/test ask for."""

from __future__ import annotations

import pytest

from tools.testing.main import main, parse


def test_an_unknown_level_or_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", "nosuch"]) == 2
    assert "no level nosuch" in capsys.readouterr().out
    assert main(["--nosuch"]) == 2
    assert "no option --nosuch" in capsys.readouterr().out


def test_without_a_level_all_are_meant() -> None:
    assert parse(["--", "-k", "unit"]).levels == [
        *("style", "unit", "functional", "system", "crash", "vm")
    ]
    choice = parse(["vm", "unit", "--", "-k", "ids"])
    assert choice.levels == ["unit", "vm"]
    assert choice.arguments == ["-k", "ids"]


def test_a_seed_may_be_given() -> None:
    assert parse(["--random", "17", "unit"]).seed == 17
    assert parse(["--random", "unit"]).seed is not None
    assert parse(["unit"]).seed is None


def test_only_files_of_the_chosen_levels_run() -> None:
    choice = parse(["unit", "vm"])
    assert choice.paths("unit", "functional") == ["tests/unit"]
    choice.files = [
        "tests/unit/test_architecture.py",
        "tests/crash/test_kill.py",
        "tests/vm/test_a.py",
    ]
    assert choice.paths("unit", "functional", "crash") == ["tests/unit/test_architecture.py"]
    assert choice.paths("vm") == ["tests/vm/test_a.py"]


def test_help_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: tools/test")


@pytest.mark.starts("git")
def test_an_unknown_revision_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--changed", "nosuchrevision"]) == 2
    assert "no revision nosuchrevision" in capsys.readouterr().out
