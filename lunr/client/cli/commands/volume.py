"""``lunr volume``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.commands.retention import retention
from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import (
    ID,
    SIZE,
    fill_options,
    limit_option,
    metadata_option,
    name_filter,
    name_option,
    timeout_option,
    wait_options,
)
from lunr.client.cli.progress import wait_ready, wait_usable
from lunr.client.records import Volume


@click.group()
def volume() -> None:
    """Create, change and delete volumes.

    \b
    Examples:
      lunr volume create --size 10 --name data -m os=debian
      lunr volume create --from-snapshot SNAPSHOT
      lunr volume list --status ACTIVE
      lunr volume extend VOLUME 20
    """


_noun = Noun(volume, Volume, lambda client: client.volumes)
_noun.add_list(
    "List volumes, newest first; deleted ones only with --status DELETED.",
    lambda client: client.volumes.list,
    click.option("--status", help="Only in this state, such as ACTIVE or DELETED."),
    name_filter,
    click.option("--type", "volume_type_name", help="Only of this volume type."),
    click.option("--node", "node_id", type=ID, help="Only on this node."),
    metadata_option,
    limit_option,
    admin_lister=lambda client: client.admin.volumes,
    admin_columns=("account_id", *Volume.columns, "node_id"),
)
_noun.add_show("Show a volume, how far the work on it is, and what went wrong.")
_noun.add_delete(
    """Delete volumes and all that is on them. Their backups stay.

    On some nodes all of a volume is overwritten first, which takes its time.
    """,
    "Delete {ids} and all data on it?",
)


@volume.command()
@click.option("--size", type=SIZE, help="GiB: 10, 10G or 1T. Not needed with a source.")
@name_option
@metadata_option
@click.option("--type", "volume_type_name", help="Volume type; `lunr type list` shows them.")
@click.option("--from-backup", "backup", type=ID, help="Restore this backup to it.")
@fill_options
@click.option("--from-snapshot", "snapshot", type=ID, help="Start with what this snapshot holds.")
@click.option("--from-volume", "source_volume", type=ID, help="Start as a copy of this volume.")
@click.option(
    "--affinity",
    metavar="RULE",
    help="different_node:VOLUME[,VOLUME] or different_group:VOLUME[,VOLUME].",
)
@click.option("--force-node", type=ID, help="The node that shall have it (needs the role admin).")
@click.option("--id", "id", type=ID, help="The volume's id.  [a new one]")
@wait_options
@prints_record
def create(context: ClientContext, /, wait: bool, timeout: float | None, **given: Any) -> Volume:
    """Create a volume: empty, or from a backup, a snapshot or another volume.

    One from a backup can be used at once, whatever its size, and is filled behind. So is one
    from a volume that is still being filled, or from a snapshot that was taken of one then.
    `lunr volume wait` waits until all of it is there.

    \b
    Examples:
      lunr volume create --size 10
      lunr volume create --from-backup BACKUP --fill lazy
      lunr volume create --from-volume VOLUME --affinity different_node:VOLUME
    """
    sources = ("backup", "snapshot", "source_volume")
    chosen = [name for name in sources if given[name] is not None]
    if len(chosen) > 1:
        raise click.UsageError("A volume can have only one source.")
    if not chosen and given["size"] is None:
        raise click.UsageError("--size is needed, unless the volume is made from something.")
    if given["backup"] is None and (given["fill"] or given["fill_limit"] is not None):
        raise click.UsageError("Only a volume from a backup is filled.")
    volumes = context.client.volumes
    record = volumes.create(**given)
    if wait and chosen:
        record = wait_usable(volumes, record.id, timeout)
    elif wait:
        record = wait_ready(volumes, "volume", record.id, timeout)
    return record


@volume.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@name_option
@metadata_option
@click.option("--clear-metadata", is_flag=True, help="Remove all metadata.")
@fill_options
@prints_record
def update(
    context: ClientContext, /, volume_id: str, clear_metadata: bool, **changes: Any
) -> Volume:
    """Change a volume's name, replace all its metadata, or fill it otherwise.

    With --fill, what could not be restored so far is tried again.
    """
    if clear_metadata:
        changes["metadata"] = changes["metadata"] or {}
    if all(change is None for change in changes.values()):
        raise click.UsageError("Nothing to change: give --name, -m, --clear-metadata or --fill.")
    return context.client.volumes.update(volume_id, **changes)


@volume.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.argument("size", type=SIZE)
@wait_options
@prints_record
def extend(
    context: ClientContext, volume_id: str, size: int, wait: bool, timeout: float | None
) -> Volume:
    """Make a volume larger, also while it is exported; SIZE is its new size in GiB.

    Its initiator sees the new size after a rescan: `iscsiadm -m session --rescan`.
    """
    volumes = context.client.volumes
    record = volumes.extend(volume_id, size)
    if wait:
        record = wait_ready(volumes, "volume", volume_id, timeout)
    return record


@volume.command("wait")
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.option("--usable", is_flag=True, help="Only until it can be used, though it is not full.")
@timeout_option
@prints_record
def wait_(context: ClientContext, volume_id: str, usable: bool, timeout: float | None) -> Volume:
    """Wait until a volume is ACTIVE and nothing works on it any more.

    While it is filled from a backup, the bar tells how fast, and how long it will take.
    """
    volumes = context.client.volumes
    if usable:
        return wait_usable(volumes, volume_id, timeout)
    return wait_ready(volumes, "volume", volume_id, timeout)


volume.add_command(retention)
