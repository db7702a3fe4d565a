"""``lunr type``: volume types."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import ID, SIZE, confirm, json_option, rules_options, yes_option
from lunr.client.cli.output import print_gone
from lunr.client.records import VolumeType

_min_size = click.option("--min-size", type=SIZE, help="Smallest volume in GiB.")
_max_size = click.option("--max-size", type=SIZE, help="Largest volume in GiB.")
_iops = click.IntRange(min=0)
_read_iops = click.option("--read-iops", type=_iops, help="Reads a second; 0: no limit.")
_write_iops = click.option("--write-iops", type=_iops, help="Writes a second; 0: no limit.")


@click.group("type")
def type_() -> None:
    """See volume types, and manage them (needs the role admin).

    \b
    Examples:
      lunr type list
      lunr type create fast --max-size 2T --read-iops 20000
    """


_noun = Noun(type_, VolumeType, lambda client: client.admin.volume_types)
_noun.add_list("List the types that volumes can be of.", lambda client: client.volume_types)
_noun.add_show(
    "Show a volume type (needs the role admin; `lunr type list` does not).", metavar="NAME"
)


@type_.command()
@click.argument("name", type=ID)
@_min_size
@_max_size
@_read_iops
@_write_iops
@rules_options
@prints_record
def create(
    context: ClientContext, /, name: str, rules: dict[str, int] | None, **limits: int | None
) -> VolumeType:
    """Make a volume type. The rules are for volumes that have none of their own."""
    types = context.client.admin.volume_types
    return types.create(name, **limits, retention=rules)


@type_.command()
@click.argument("name", type=ID)
@_min_size
@_max_size
@_read_iops
@_write_iops
@rules_options
@click.option("--keep-all", is_flag=True, help="No rules: keep all backups.")
@prints_record
def update(
    context: ClientContext,
    /,
    name: str,
    rules: dict[str, int] | None,
    keep_all: bool,
    **limits: int | None,
) -> VolumeType:
    """Change a volume type; volumes that are there keep their size.

    If any rule is given, those that are not are none. They are for volumes that have
    none of their own: the housekeeper soon deletes what they don't keep.
    """
    if keep_all and rules is not None:
        raise click.UsageError("Give rules, or --keep-all.")
    retention = {} if keep_all else rules
    if retention is None and all(limit is None for limit in limits.values()):
        raise click.UsageError("Nothing to change: give a size, a number of IOPS or rules.")
    types = context.client.admin.volume_types
    return types.update(name, **limits, retention=retention)


@type_.command()
@click.argument("name", type=ID)
@yes_option
@json_option
@click.pass_obj
def delete(context: ClientContext, name: str, yes: bool, as_json: bool) -> None:
    """Delete a volume type that no volume has."""
    confirm(f"Delete volume type {name}?", yes)
    context.client.admin.volume_types.delete(name)
    print_gone("volume type", name, as_json)
