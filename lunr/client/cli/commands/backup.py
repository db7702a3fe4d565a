"""``lunr backup``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.commands.retention import prune
from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import (
    ID,
    SIZE,
    fill_options,
    json_option,
    limit_option,
    metadata_option,
    name_filter,
    name_option,
    volume_filter,
    wait_options,
)
from lunr.client.cli.output import print_list
from lunr.client.cli.plugins import PluginGroup
from lunr.client.cli.progress import wait_ready, wait_usable
from lunr.client.records import Backup, Job, Volume


class _Backup(PluginGroup):
    prefix = "backup."


@click.group(cls=_Backup)
def backup() -> None:
    """Back volumes up, check backups, restore them.

    A backup after the first stores only what changed, but is complete by itself:
    any of them can be deleted, in any order. It outlives its volume.

    \b
    Examples:
      lunr backup create VOLUME --name monday
      lunr backup create VOLUME --snapshot SNAPSHOT
      lunr backup list --volume VOLUME
      lunr backup restore BACKUP --name data-again
      lunr backup verify BACKUP
    """


_noun = Noun(backup, Backup, lambda client: client.backups)
_noun.add_list(
    "List backups, newest first; deleted ones only with --status DELETED.",
    lambda client: client.backups.list,
    click.option("--status", help="Only in this state, such as AVAILABLE or DELETED."),
    name_filter,
    volume_filter,
    limit_option,
    admin_lister=lambda client: client.admin.backups,
)
_noun.add_show("Show a backup, how far it is, and what went wrong.")
_noun.add_delete("Delete backups. No other backup is hurt by it.", "Delete {ids}?")
_noun.add_wait("Wait until a backup is AVAILABLE.")


@backup.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@name_option
@metadata_option
@click.option("--snapshot", type=ID, help="Save this snapshot of it, not the volume as it is now.")
@click.option(
    "--protect", "protected", is_flag=True, default=None, help="Never delete or prune it."
)
@click.option("--full", is_flag=True, default=None, help="Read and store all, not what changed.")
@click.option("--id", "id", type=ID, help="The backup's id.  [a new one]")
@wait_options
@prints_record
def create(
    context: ClientContext, /, volume_id: str, wait: bool, timeout: float | None, **given: Any
) -> Backup:
    """Back a volume up as it is now, or as a snapshot holds it; it may be in use."""
    backups = context.client.backups
    record = backups.create(volume_id, **given)
    if wait:
        record = wait_ready(backups, "backup", record.id, timeout)
    return record


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@name_option
@metadata_option
@click.option("--protect/--unprotect", "protected", default=None, help="Never delete or prune it.")
@prints_record
def update(context: ClientContext, /, backup_id: str, **given: Any) -> Backup:
    """Change a backup's name, replace all its metadata, or protect it."""
    if all(value is None for value in given.values()):
        raise click.UsageError("Nothing to change: give --name, -m, --protect or --unprotect.")
    return context.client.backups.update(backup_id, **given)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@wait_options
@prints_record
def verify(context: ClientContext, backup_id: str, wait: bool, timeout: float | None) -> Job:
    """Read all of a backup and check it against its hashes."""
    client = context.client
    job = client.backups.verify(backup_id)
    if wait:
        job = wait_ready(client.jobs, "job", job.id, timeout)
    return job


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@json_option
@click.pass_obj
def restores(context: ClientContext, backup_id: str, as_json: bool) -> None:
    """List the volumes that are being restored from a backup now."""
    volumes = context.client.backups.restores(backup_id)
    print_list(volumes, ("id", "name", "size", "status", "progress"), as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@name_option
@metadata_option
@fill_options
@click.option("--size", type=SIZE, help="GiB, not smaller than the backup.  [its size]")
@click.option("--type", "volume_type_name", help="Volume type; `lunr type list` shows them.")
@click.option("--id", "id", type=ID, help="The volume's id.  [a new one]")
@wait_options
@prints_record
def restore(
    context: ClientContext, /, backup_id: str, wait: bool, timeout: float | None, **given: Any
) -> Volume:
    """Restore a backup to a new volume (as `lunr volume create --from-backup` does).

    It can be used at once, whatever its size, and is filled behind. `lunr volume wait` waits
    until all of it is there.
    """
    volumes = context.client.volumes
    record = volumes.create(backup=backup_id, **given)
    if wait:
        record = wait_usable(volumes, record.id, timeout)
    return record


backup.add_command(prune)
