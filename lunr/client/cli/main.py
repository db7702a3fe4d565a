"""``lunr``, the command line.

Other packages add commands by the entry point group ``lunr.commands``. A
command of theirs is imported when it is used, so one that is broken or slow
leaves the others alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lunr import __version__
from lunr.client.cli import commands, plugins
from lunr.client.cli.context import ClientContext
from lunr.client.cli.output import escape
from lunr.client.errors import ApiError
from lunr.common.errors import LunrError
from lunr.common.help import HELP

#: What shells say of a program that Ctrl-C ended: 128 + SIGINT.
_INTERRUPTED = 130


class Failure(click.ClickException):
    """One line on standard error, exit code 1."""

    def __init__(self, error: LunrError) -> None:
        request = error.request_id if isinstance(error, ApiError) else None
        note = error.code if request is None else f"{error.code}, request {request}"
        super().__init__(f"{escape(str(error))} ({escape(note)})")

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class Lunr(plugins.PluginGroup):
    """All commands; their errors become one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except LunrError as error:
            raise Failure(error) from error
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(_INTERRUPTED)


@click.group(cls=Lunr, context_settings=HELP)
@click.option("--url", metavar="URL", help="Where the API is.  [LUNR_URL]")
@click.option("--account", metavar="ID", help="Whose things this is about.  [LUNR_ACCOUNT]")
@click.option(
    "--openrc",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Take LUNR_URL, LUNR_ACCOUNT and LUNR_TOKEN from lines NAME=value in FILE (mode 0600).",
)
@click.version_option(__version__, prog_name="lunr")
@click.pass_context
def cli(ctx: click.Context, url: str | None, account: str | None, openrc: Path | None) -> None:
    """Volumes, their snapshots, their exports by iSCSI, and their backups.

    The token is taken from LUNR_TOKEN or the openrc file, never from an option:
    everyone on the machine can read a command's options.

    \b
    Examples:
      . /srv/lunr/openrc
      lunr volume create --size 10 --name data
      lunr export create VOLUME --ip 10.0.0.5
      lunr backup create VOLUME
      lunr backup restore BACKUP --name data-again
    """
    ctx.obj = context = ClientContext(url, account, openrc)
    ctx.call_on_close(context.close)


for command in commands.ALL:
    cli.add_command(command)


def main() -> None:
    """Run the command line; the entry point."""
    cli(prog_name="lunr")


if __name__ == "__main__":
    main()
