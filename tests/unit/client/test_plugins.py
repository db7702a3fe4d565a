"""Commands of other packages: listed without being imported, and harmless when broken."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lunr.client.cli.main import cli

ENTRY_POINTS = """[lunr.commands]
works = lunr_test_works:works
broken = lunr_test_broken:broken
absent = lunr_test_absent:absent
wrong = lunr_test_works:NUMBER
volume = lunr_test_works:works
"""
WORKS = '''import click
NUMBER = 7
@click.command()
@click.option("--times", type=int, default=1)
def works(times):
    """Do something useful. At length."""
    click.echo("useful " * times)
'''
BROKEN = '''def broken():
    """Never get so far."""
import no_such_module_anywhere
'''


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that brings five commands."""
    info = tmp_path / "lunr_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lunr-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "lunr_test_works.py").write_text(WORKS)
    (tmp_path / "lunr_test_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lunr_test_works", "lunr_test_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_help_lists_them_and_imports_none() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines() if "  " in line[2:])
    assert lines["works"] == "Do something useful."
    assert lines["broken"] == "Never get so far."
    assert "absent" in result.stdout
    assert "lunr_test_works" not in sys.modules
    assert "lunr_test_broken" not in sys.modules


def test_one_that_works_works() -> None:
    result = CliRunner().invoke(cli, ["works", "--times", "2"])
    assert (result.exit_code, result.stdout) == (0, "useful useful \n")
    assert "--times" in CliRunner().invoke(cli, ["works", "--help"]).stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "No module named 'no_such_module_anywhere'"),
        ("absent", "No module named 'lunr_test_absent'"),
        ("wrong", "lunr_test_works:NUMBER is not a command"),
    ],
)
def test_one_that_is_broken_says_so_in_one_line(name: str, why: str) -> None:
    result = CliRunner().invoke(cli, [name, "whatever"])
    assert result.exit_code == 1
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_they_can_not_replace_a_command_of_the_client() -> None:
    command = cli.get_command(click.Context(cli), "volume")
    assert command is cli.commands["volume"]
