"""``lunr snapshot``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.commands import deleting
from lunr.client.cli.context import Session
from lunr.client.cli.options import (
    ID,
    all_accounts_option,
    confirm,
    json_option,
    limit_option,
    metadata_option,
    name_option,
    timeout_option,
    wait_options,
    yes_option,
)
from lunr.client.cli.output import print_list, print_record
from lunr.client.cli.progress import finished

_COLUMNS: tuple[str, ...] = ("id", "name", "volume_id", "size", "status", "created_at")


@click.group()
def snapshot() -> None:
    """Take and delete snapshots: what a volume held at one moment, kept on its node.

    \b
    Examples:
      lunr snapshot create VOLUME --name before-upgrade
      lunr volume create --from-snapshot SNAPSHOT
    """


@snapshot.command("list")
@click.option("--status", help="Only in this state, such as AVAILABLE or DELETED.")
@click.option("--name", help="Only with this name.")
@click.option("--volume", "volume_id", type=ID, help="Only of this volume.")
@limit_option
@all_accounts_option
@json_option
@click.pass_obj
def list_(session: Session, /, all_accounts: bool, as_json: bool, **filters: Any) -> None:
    """List snapshots, newest first; deleted ones only with --status DELETED."""
    client = session.client
    if all_accounts:
        found, columns = client.admin.snapshots(**filters), ("account_id", *_COLUMNS)
    else:
        found, columns = client.snapshots.list(**filters), _COLUMNS
    print_list(found, columns, as_json)


@snapshot.command()
@click.argument("snapshot_id", metavar="SNAPSHOT", type=ID)
@json_option
@click.pass_obj
def show(session: Session, snapshot_id: str, as_json: bool) -> None:
    """Show a snapshot."""
    print_record(session.client.snapshots.get(snapshot_id), as_json)


@snapshot.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@name_option
@metadata_option
@wait_options
@json_option
@click.pass_obj
def create(
    session: Session,
    volume_id: str,
    name: str | None,
    metadata: dict[str, str] | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Take a snapshot of a volume.

    If the volume is still being filled from a backup, the snapshot lacks what is not there
    yet. That backup is needed then as long as the snapshot is there.
    """
    snapshots = session.client.snapshots
    record = snapshots.create(volume_id, name=name, metadata=metadata)
    if wait:
        record = finished(snapshots, "snapshot", record.id, timeout)
    print_record(record, as_json)


@snapshot.command()
@click.argument("snapshot_ids", metavar="SNAPSHOT...", type=ID, nargs=-1, required=True)
@yes_option
@wait_options
@json_option
@click.pass_obj
def delete(
    session: Session,
    snapshot_ids: tuple[str, ...],
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Delete snapshots. Volumes made from them stay."""
    confirm(f"Delete {', '.join(snapshot_ids)}?", yes)
    deleting.run(session.client.snapshots, "snapshot", snapshot_ids, wait, timeout, as_json)


@snapshot.command("wait")
@click.argument("snapshot_id", metavar="SNAPSHOT", type=ID)
@timeout_option
@json_option
@click.pass_obj
def wait_(session: Session, snapshot_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a snapshot is AVAILABLE."""
    print_record(finished(session.client.snapshots, "snapshot", snapshot_id, timeout), as_json)
