"""Writes docs/cli.md from the commands in the code; tools/cli-reference starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lunr.client.cli.main import cli
from lunr.client.cli.plugins import Plugin

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
_TITLE = """# The command line

Made from the code by `tools/cli-reference`; the same text is in `lunr COMMAND --help`.
How to use it is told in [the client](client.md).
"""
_WIDTH = 90


def page() -> str:
    """The whole page."""
    return "\n".join([_TITLE, *_sections(cli, None)])


def _sections(command: click.Command, parent: click.Context | None) -> Iterator[str]:
    name = "lunr" if parent is None else command.name
    # The width of a page, not of the terminal that it is made in.
    context = click.Context(
        command,
        parent,
        name,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        **command.context_settings,
    )
    yield f"## {context.command_path}\n\n```\n{context.get_help()}\n```\n"
    if not isinstance(command, click.Group):
        return
    for word in command.list_commands(context):
        child = command.get_command(context, word)
        assert child is not None
        yield from _sections(child.load() if isinstance(child, Plugin) else child, context)


def main() -> None:
    """Write the page, or another file that is named."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page())


if __name__ == "__main__":
    main()
