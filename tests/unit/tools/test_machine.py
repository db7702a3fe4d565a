"""The VM's launcher understands its arguments, and quotes what it hands to a shell."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tools.virtual import machine


@pytest.mark.parametrize(
    ("text", "size", "plain"),
    [("512M", 512 << 20, False), ("4G", 4 << 30, False), ("1G,plain", 1 << 30, True)],
)
def test_disks(text: str, size: int, plain: bool) -> None:
    assert machine.parse_disk(text) == (size, plain)


@pytest.mark.parametrize("text", ["", "G", "4", "4T", "4G,fast", "-1G"])
def test_a_disk_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no size"):
        machine.parse_disk(text)


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "--"], ["walk", "--", "true"]])
def test_without_a_command_it_says_how(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.main(arguments) == 2
    assert "tools/vm" in "".join(capsys.readouterr())


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(["--help"]) == 0
    assert "--disk SIZE" in capsys.readouterr().out


def test_without_a_kernel_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    assert machine.main(["run", "--", "true"]) == machine.NO_ANSWER
    assert "tools/setup --vm" in capsys.readouterr().err
