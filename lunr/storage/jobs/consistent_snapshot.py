"""Snapshots of volumes that may be filled at that moment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import errors, ids
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Purpose, Snapshot

_log = logging.getLogger(__name__)


def take(
    node: NodeContext, snapshot: Snapshot, keep: Callable[[MissingExtents], None] = lambda _: None
) -> MissingExtents | None:
    """Take the snapshot of its volume; what it lacks, or None: nothing.

    Args:
        node: has the volume.
        snapshot: one that is there already is left as it is.
        keep: called with what it will lack, before it is taken.

    Raises:
        RestoreBusy: the volume did not stand still, and so the snapshot is worth nothing.
        RestoreStateLost: nobody knows what it lacks.
    """
    restore = node.restores.get(snapshot.volume_id)
    if restore is None or restore.is_filled or restore.spec is None:
        node.pool.snapshot(snapshot)
        return None
    with restore.freeze() as absent:
        gaps = MissingExtents(restore.spec.backup_id, absent)
        keep(gaps)
        node.pool.snapshot(snapshot)
    return gaps if absent else None


@contextlib.contextmanager
def taken(node: NodeContext, volume_id: str) -> Iterator[tuple[Snapshot, MissingExtents | None]]:
    """A snapshot of the volume, and what it lacks, for as long as the ``with`` lasts.

    Should the process be killed, the next start removes it, as no backup has its id.
    """
    snapshot = Snapshot(volume_id, ids.new(), Purpose.BACKUP)
    try:
        yield snapshot, take(node, snapshot)
    finally:
        try:
            node.pool.delete_snapshot(snapshot)
        except errors.LunrError as error:  # what was done with it is done, or failed before
            _log.error("snapshot %s stays until the next start: %s", snapshot.id, error)


def drop(node: NodeContext, snapshot: Snapshot) -> None:
    """See that the snapshot is gone, and what is known of it; nobody uses it any more."""
    if snapshot.purpose is Purpose.USER:
        node.restores.snapshot_gaps.forget(snapshot)
    node.pool.delete_snapshot(snapshot)
