"""``lunr volume retention`` and ``lunr backup prune``."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.options import ID, confirm, json_option, rules_options, yes_option
from lunr.client.cli.output import format_value, print_json, print_list
from lunr.client.records import Retention, Verdict

_WHOSE = {
    "volume": "its own rules",
    "volume_type": "the rules of its type",
    "request": "the given rules",
}


@click.group()
def retention() -> None:
    """See and set which backups of a volume are kept.

    Of the backups that a schedule made, those that no rule keeps are deleted. Backups
    that were made by hand or are protected are kept. Without rules all are.

    \b
    Examples:
      lunr volume retention set VOLUME --keep-daily 7 --keep-weekly 4
      lunr volume retention show VOLUME
      lunr volume retention reset VOLUME
    """


@retention.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@json_option
@click.pass_obj
def show(context: ClientContext, volume_id: str, as_json: bool) -> None:
    """Show the rules of a volume, and which backups they keep."""
    _print(context.client.retention.get(volume_id), as_json)


@retention.command("set")
@click.argument("volume_id", metavar="VOLUME", type=ID)
@rules_options
@click.option("--keep-all", is_flag=True, help="Keep everything, whatever its type says.")
@json_option
@click.pass_obj
def set_(
    context: ClientContext,
    volume_id: str,
    rules: dict[str, int] | None,
    keep_all: bool,
    as_json: bool,
) -> None:
    """Give a volume rules of its own; those that are not given are none.

    The housekeeper soon deletes what they don't keep: `lunr backup prune --dry-run` with
    the same rules says first what that is.
    """
    if keep_all == (rules is not None):
        raise click.UsageError("Give rules, or --keep-all.")
    _print(context.client.retention.set(volume_id, rules or {}), as_json)


@retention.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@json_option
@click.pass_obj
def reset(context: ClientContext, volume_id: str, as_json: bool) -> None:
    """Take a volume's own rules away: those of its type are good for it again."""
    _print(context.client.retention.reset(volume_id), as_json)


@click.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@rules_options
@click.option("--all", "all_", is_flag=True, help="Backups that were made by hand count too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@yes_option
@json_option
@click.pass_obj
def prune(
    context: ClientContext,
    volume_id: str,
    rules: dict[str, int] | None,
    all_: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete the backups of a volume that no rule keeps.

    The rules are those that are given, or else the volume's (`lunr volume retention`).

    \b
    Examples:
      lunr backup prune VOLUME --dry-run
      lunr backup prune VOLUME --all --keep-last 3
    """
    retentions = context.client.retention
    plan = retentions.prune(volume_id, rules, all=all_, dry_run=True)
    doomed = sum(not verdict.keep for verdict in plan.verdicts)
    if doomed and not dry_run:
        confirm(f"Delete {doomed} of {len(plan.backups)} backups of {volume_id}?", yes)
        plan = retentions.prune(volume_id, rules, all=all_)
    _print(plan, as_json)


def _print(record: Retention, as_json: bool) -> None:
    if as_json:
        print_json(record.as_dict())
        return
    whose = _WHOSE.get(record.rules_of or "", "there are no rules")
    click.echo(
        f"{whose}: {format_value('rules', record.rules)}"
        if record.rules
        else f"{whose}: all is kept"
    )
    print_list(record.verdicts, Verdict.columns, as_json)
