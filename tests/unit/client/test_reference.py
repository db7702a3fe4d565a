"""docs/cli.md says what the commands say."""

from __future__ import annotations

from tools import cli_reference


def test_the_page_of_the_command_line_is_fresh() -> None:
    assert cli_reference.PAGE.read_text() == cli_reference.page(), "run tools/cli-reference"


def test_the_page_holds_every_part() -> None:
    page = cli_reference.page()
    for command in (
        "lunr volume create",
        "lunr account token delete",
        "lunr engine save",
        "lunr up",
    ):
        assert f"\n## {command}\n" in page
