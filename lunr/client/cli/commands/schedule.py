"""``lunr schedule``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import (
    ID,
    all_accounts_option,
    confirm,
    json_option,
    limit_option,
    name_filter,
    name_option,
    volume_filter,
    yes_option,
)
from lunr.client.cli.output import print_gone
from lunr.client.records import Schedule
from lunr.client.schedules import AllSchedules, Schedules

_EVERY = ("15m", "30m", "1h", "2h", "3h", "4h", "6h", "8h", "12h", "1d", "1w", "none")
_HELP = "How often; none: never, whatever the schedule of its type says."

_at = click.option(
    "--at", metavar="TIME", help="HH:MM in UTC; for 1w with a day: 'sun 03:30'.  [midnight]"
)
_spread = click.option(
    "--spread",
    type=click.IntRange(min=0),
    metavar="MINUTES",
    help="Begin within so many minutes after that, each volume at its own time.",
)


@click.group()
def schedule() -> None:
    """Have volumes backed up regularly.

    A volume has one schedule of its own, or else the one of its type. Which of
    the backups are kept, `lunr volume retention` says.

    \b
    Examples:
      lunr schedule create --volume VOLUME --every 1d --at 03:30 --name nightly
      lunr schedule create --type default --every 6h
      lunr schedule show --volume VOLUME
    """


Noun(schedule, Schedule, lambda client: client.schedules).add_list(
    "List schedules; those of volume types only with --all-accounts.",
    lambda client: client.schedules.list,
    name_filter,
    volume_filter,
    limit_option,
    admin_lister=lambda client: client.admin.schedules.list,
    admin_columns=("account_id", "volume_type_name", *Schedule.columns),
)


@schedule.command()
@click.argument("schedule_id", metavar="[SCHEDULE]", type=ID, required=False)
@click.option("--volume", "volume_id", type=ID, help="The one that is good for this volume.")
@all_accounts_option
@prints_record
def show(
    context: ClientContext, schedule_id: str | None, volume_id: str | None, all_accounts: bool
) -> Schedule:
    """Show a schedule, or the one that is good for a volume: its own, or its type's."""
    if volume_id is not None and schedule_id is None:
        return context.client.schedules.of_volume(volume_id)
    if schedule_id is not None and volume_id is None:
        return _schedules(context, all_accounts).get(schedule_id)
    raise click.UsageError("Name a schedule, or give --volume.")


@schedule.command()
@click.option("--volume", "volume_id", type=ID, help="The volume.")
@click.option("--type", "volume_type_name", type=ID, help="All of a type (needs the role admin).")
@click.option("--every", type=click.Choice(_EVERY), required=True, help=_HELP)
@_at
@_spread
@name_option
@prints_record
def create(
    context: ClientContext, /, volume_id: str | None, volume_type_name: str | None, **given: Any
) -> Schedule:
    """Have a volume, or the volumes of a type, backed up regularly."""
    if volume_id is not None and volume_type_name is None:
        return context.client.schedules.create(volume_id, **given)
    if volume_type_name is not None and volume_id is None:
        return context.client.admin.schedules.create(volume_type_name, **given)
    raise click.UsageError("Give --volume or --type.")


@schedule.command()
@click.argument("schedule_id", metavar="SCHEDULE", type=ID)
@click.option("--every", type=click.Choice(_EVERY), help=_HELP)
@_at
@_spread
@name_option
@all_accounts_option
@prints_record
def update(
    context: ClientContext, /, schedule_id: str, all_accounts: bool, **given: Any
) -> Schedule:
    """Change a schedule. With another --every, what is not given has its default again."""
    if all(value is None for value in given.values()):
        raise click.UsageError("Nothing to change: give --every, --at, --spread or --name.")
    return _schedules(context, all_accounts).update(schedule_id, **given)


@schedule.command()
@click.argument("schedule_id", metavar="SCHEDULE", type=ID)
@all_accounts_option
@yes_option
@json_option
@click.pass_obj
def delete(
    context: ClientContext, schedule_id: str, all_accounts: bool, yes: bool, as_json: bool
) -> None:
    """Delete a schedule. The backups that it made stay."""
    confirm(f"Delete schedule {schedule_id}?", yes)
    _schedules(context, all_accounts).delete(schedule_id)
    print_gone("schedule", schedule_id, as_json)


def _schedules(context: ClientContext, all_accounts: bool) -> Schedules | AllSchedules:
    client = context.client
    return client.admin.schedules if all_accounts else client.schedules
