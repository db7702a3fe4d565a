"""``lunr group``."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun
from lunr.client.cli.options import ID, json_option, limit_option
from lunr.client.cli.output import escape, print_list, print_record
from lunr.client.records import Group

_MEMBERS: tuple[str, ...] = ("id", "name", "volume_id", "size", "status", "bytes_stored", "damaged")


@click.group()
def group() -> None:
    """Backups of running machines: all of a machine's disks at one instant.

    `lunr live backup` makes them. Each disk's backup is restored by `lunr backup restore`.

    \b
    Examples:
      lunr group list --machine web
      lunr group show GROUP
      lunr backup restore BACKUP --name root-again
      lunr group delete GROUP
    """


_noun = Noun(group, Group, lambda client: client.groups)
_noun.add_list(
    "List groups, newest first.",
    lambda client: client.groups.list,
    click.option("--status", help="Only in this state: SAVING, AVAILABLE, ERROR, DELETED."),
    click.option("--machine", type=ID, help="Only of this machine."),
    limit_option,
)
_noun.add_delete(
    "Delete groups with their backups. One that is being saved is given up.",
    "Delete {ids} and all of their backups?",
)


@group.command()
@click.argument("group_id", metavar="GROUP", type=ID)
@json_option
@click.pass_obj
def show(context: ClientContext, group_id: str, as_json: bool) -> None:
    """Show a group, and the backups of its disks."""
    record = context.client.groups.get(group_id)
    if as_json:
        print_record(record, as_json)
        return
    head = (f"machine {record.machine}", record.status, record.created_at, record.reason)
    click.echo(", ".join(escape(part) for part in head if part))
    print_list(record.members, _MEMBERS, as_json)
