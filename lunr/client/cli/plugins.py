"""Commands of other packages, by the entry point group ``lunr.commands``.

The entry point ``backup.mount`` is the command ``lunr backup mount``.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

GROUP = "lunr.commands"


class Plugin(click.Command):
    """A command of another package, which is imported when it is run."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(entry.name.rpartition(".")[2])
        self._entry = entry

    def load(self) -> click.Command:
        """The command itself.

        Raises:
            ClickException: it can't be imported; the message says why.
        """
        try:
            command = self._entry.load()
        except Exception as error:  # another package's module may raise anything
            raise click.ClickException(
                f"`lunr {self.name}` can't be used here: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(command, click.Command):
            raise click.ClickException(f"{self._entry.value} is not a command")
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the imported command, which takes this one's place."""
        return self.load().make_context(info_name, args, parent, **extra)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of the command's docstring, read from its source."""
        self.help = _docstring(self._entry)
        return super().get_short_help_str(limit)


class PluginGroup(click.Group):
    """A group with the commands of this package, then those of other packages."""

    #: What the names of its entry points begin with.
    prefix = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return [*super().list_commands(ctx), *sorted(self._names() - set(self.commands))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command; this does not import one of another package."""
        return super().get_command(ctx, cmd_name) or self._find(cmd_name)

    def _names(self) -> set[str]:
        names = {entry.name for entry in entry_points(group=GROUP)}
        own = {name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix)}
        return {name for name in own if "." not in name}

    def _find(self, name: str) -> Plugin | None:
        for entry in entry_points(group=GROUP, name=self.prefix + name):
            return Plugin(entry)
        return None


def _docstring(entry: EntryPoint) -> str | None:
    # An import of each module would make `lunr --help` wait for the slowest of them.
    try:
        spec = importlib.util.find_spec(entry.module)
        source = spec.loader.get_source(entry.module)  # type: ignore[union-attr]
        body = ast.parse(source).body
    except (ImportError, AttributeError, TypeError, SyntaxError):
        return None  # not installed, or not in Python; using it says more
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return ast.get_docstring(node)
    return None
