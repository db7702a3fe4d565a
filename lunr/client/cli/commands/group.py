"""``lunr group``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.commands import deleting
from lunr.client.cli.context import Session
from lunr.client.cli.options import ID, confirm, json_option, limit_option, wait_options, yes_option
from lunr.client.cli.output import clean, print_list, print_record

_COLUMNS: tuple[str, ...] = ("id", "machine", "status", "progress", "created_at", "reason")
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


@group.command("list")
@click.option("--status", help="Only in this state: SAVING, AVAILABLE, ERROR, DELETED.")
@click.option("--machine", type=ID, help="Only of this machine.")
@limit_option
@json_option
@click.pass_obj
def list_(session: Session, /, as_json: bool, **filters: Any) -> None:
    """List groups, newest first."""
    print_list(session.client.groups.list(**filters), _COLUMNS, as_json)


@group.command()
@click.argument("group_id", metavar="GROUP", type=ID)
@json_option
@click.pass_obj
def show(session: Session, group_id: str, as_json: bool) -> None:
    """Show a group, and the backups of its disks."""
    found = session.client.groups.get(group_id)
    if as_json:
        print_record(found, as_json)
        return
    head = (f"machine {found.machine}", found.status, found.created_at, found.reason)
    click.echo(", ".join(clean(part) for part in head if part))
    print_list(found.members, _MEMBERS, as_json)


@group.command()
@click.argument("group_ids", metavar="GROUP...", type=ID, nargs=-1, required=True)
@yes_option
@wait_options
@json_option
@click.pass_obj
def delete(
    session: Session,
    group_ids: tuple[str, ...],
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Delete groups with their backups. One that is being saved is given up."""
    confirm(f"Delete {', '.join(group_ids)} and all of their backups?", yes)
    deleting.run(session.client.groups, "group", group_ids, wait, timeout, as_json)
