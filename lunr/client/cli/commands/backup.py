"""``lunr backup``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.commands import deleting
from lunr.client.cli.commands.retention import prune
from lunr.client.cli.context import Session
from lunr.client.cli.options import (
    ID,
    SIZE,
    all_accounts_option,
    confirm,
    fill_options,
    json_option,
    limit_option,
    metadata_option,
    name_option,
    timeout_option,
    wait_options,
    yes_option,
)
from lunr.client.cli.output import print_list, print_record
from lunr.client.cli.plugins import Extended
from lunr.client.cli.progress import finished, usable_volume

_COLUMNS: tuple[str, ...] = (
    "id",
    "name",
    "volume_id",
    "size",
    "status",
    "bytes_stored",
    "created_at",
)


class _Backup(Extended):
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


@backup.command("list")
@click.option("--status", help="Only in this state, such as AVAILABLE or DELETED.")
@click.option("--name", help="Only with this name.")
@click.option("--volume", "volume_id", type=ID, help="Only of this volume.")
@limit_option
@all_accounts_option
@json_option
@click.pass_obj
def list_(session: Session, /, all_accounts: bool, as_json: bool, **filters: Any) -> None:
    """List backups, newest first; deleted ones only with --status DELETED."""
    client = session.client
    if all_accounts:
        found, columns = client.admin.backups(**filters), ("account_id", *_COLUMNS)
    else:
        found, columns = client.backups.list(**filters), _COLUMNS
    print_list(found, columns, as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@json_option
@click.pass_obj
def show(session: Session, backup_id: str, as_json: bool) -> None:
    """Show a backup, how far it is, and what went wrong."""
    print_record(session.client.backups.get(backup_id), as_json)


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
@json_option
@click.pass_obj
def create(
    session: Session,
    /,
    volume_id: str,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Back a volume up as it is now, or as a snapshot holds it; it may be in use."""
    backups = session.client.backups
    record = backups.create(volume_id, **given)
    if wait:
        record = finished(backups, "backup", record.id, timeout)
    print_record(record, as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@name_option
@metadata_option
@click.option("--protect/--unprotect", "protected", default=None, help="Never delete or prune it.")
@json_option
@click.pass_obj
def update(session: Session, /, backup_id: str, as_json: bool, **given: Any) -> None:
    """Change a backup's name, replace all its metadata, or protect it."""
    if all(value is None for value in given.values()):
        raise click.UsageError("Nothing to change: give --name, -m, --protect or --unprotect.")
    print_record(session.client.backups.update(backup_id, **given), as_json)


@backup.command()
@click.argument("backup_ids", metavar="BACKUP...", type=ID, nargs=-1, required=True)
@yes_option
@wait_options
@json_option
@click.pass_obj
def delete(
    session: Session,
    backup_ids: tuple[str, ...],
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Delete backups. No other backup is hurt by it."""
    confirm(f"Delete {', '.join(backup_ids)}?", yes)
    deleting.run(session.client.backups, "backup", backup_ids, wait, timeout, as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@wait_options
@json_option
@click.pass_obj
def verify(
    session: Session, backup_id: str, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Read all of a backup and check it against its hashes."""
    client = session.client
    job = client.backups.verify(backup_id)
    if wait:
        job = finished(client.jobs, "job", job.id, timeout)
    print_record(job, as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@json_option
@click.pass_obj
def restores(session: Session, backup_id: str, as_json: bool) -> None:
    """List the volumes that are being restored from a backup now."""
    found = session.client.backups.restores(backup_id)
    print_list(found, ("id", "name", "size", "status", "progress"), as_json)


@backup.command()
@click.argument("backup_id", metavar="BACKUP", type=ID)
@name_option
@metadata_option
@fill_options
@click.option("--size", type=SIZE, help="GiB, not smaller than the backup.  [its size]")
@click.option("--type", "volume_type_name", help="Volume type; `lunr type list` shows them.")
@click.option("--id", "id", type=ID, help="The volume's id.  [a new one]")
@wait_options
@json_option
@click.pass_obj
def restore(
    session: Session,
    /,
    backup_id: str,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Restore a backup to a new volume (as `lunr volume create --from-backup` does).

    It can be used at once, whatever its size, and is filled behind. `lunr volume wait` waits
    until all of it is there.
    """
    volumes = session.client.volumes
    record = volumes.create(backup=backup_id, **given)
    if wait:
        record = usable_volume(volumes, record.id, timeout)
    print_record(record, as_json)


@backup.command("wait")
@click.argument("backup_id", metavar="BACKUP", type=ID)
@timeout_option
@json_option
@click.pass_obj
def wait_(session: Session, backup_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a backup is AVAILABLE."""
    print_record(finished(session.client.backups, "backup", backup_id, timeout), as_json)


backup.add_command(prune)
