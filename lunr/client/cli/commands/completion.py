"""``lunr completion``: what makes a shell complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets a shell complete lunr's commands and options.

    \b
    Examples:
      eval "$(lunr completion bash)"
      lunr completion fish > ~/.config/fish/completions/lunr.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows the three
    click.echo(kind(ctx.find_root().command, {}, "lunr", "_LUNR_COMPLETE").source())
