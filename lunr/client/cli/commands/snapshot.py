"""``lunr snapshot``."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import (
    ID,
    limit_option,
    metadata_option,
    name_filter,
    name_option,
    volume_filter,
    wait_options,
)
from lunr.client.cli.progress import wait_ready
from lunr.client.records import Snapshot


@click.group()
def snapshot() -> None:
    """Take and delete snapshots: what a volume held at one moment, kept on its node.

    \b
    Examples:
      lunr snapshot create VOLUME --name before-upgrade
      lunr volume create --from-snapshot SNAPSHOT
    """


_noun = Noun(snapshot, Snapshot, lambda client: client.snapshots)
_noun.add_list(
    "List snapshots, newest first; deleted ones only with --status DELETED.",
    lambda client: client.snapshots.list,
    click.option("--status", help="Only in this state, such as AVAILABLE or DELETED."),
    name_filter,
    volume_filter,
    limit_option,
    admin_lister=lambda client: client.admin.snapshots,
)
_noun.add_show("Show a snapshot.")
_noun.add_delete("Delete snapshots. Volumes made from them stay.", "Delete {ids}?")
_noun.add_wait("Wait until a snapshot is AVAILABLE.")


@snapshot.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@name_option
@metadata_option
@wait_options
@prints_record
def create(
    context: ClientContext,
    volume_id: str,
    name: str | None,
    metadata: dict[str, str] | None,
    wait: bool,
    timeout: float | None,
) -> Snapshot:
    """Take a snapshot of a volume.

    If the volume is still being filled from a backup, the snapshot lacks what is not there
    yet. That backup is needed then as long as the snapshot is there.
    """
    snapshots = context.client.snapshots
    record = snapshots.create(volume_id, name=name, metadata=metadata)
    if wait:
        record = wait_ready(snapshots, "snapshot", record.id, timeout)
    return record
