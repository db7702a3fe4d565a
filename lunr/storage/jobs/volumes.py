"""Jobs on volumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import errors, ids
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.jobs.consistent_snapshot import taken
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Snapshot
from lunr.storage.restore.lazy_restore import LazyRestore
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import MAX_DAMAGE_NAMED, RestoreSettings


def create(node: NodeContext, job: ClaimedJob) -> None:
    """An empty volume."""
    node.pool.create(job.volume_id, job.size())


def clone(node: NodeContext, job: ClaimedJob) -> None:
    """A volume with the bytes of a snapshot or of another volume.

    A clone of a lazy restore, or of a snapshot of one, is a lazy restore itself.
    """
    source = job.payload.get("source") or {}
    source_id = ids.check(source.get("id"), "payload.source.id")
    origin: str | Snapshot
    match source.get("kind"):
        case "volume":
            origin = source_id
        case "snapshot":
            volume_id = ids.check(source.get("volume_id"), "payload.source.volume_id")
            origin = Snapshot(volume_id, source_id)
        case _:
            raise errors.InvalidField(field="payload.source.kind", reason="snapshot or volume")
    if job.payload.get("base_id") is None:
        node.pool.clone(job.volume_id, origin, job.size(), job.tick)
    else:
        _clone_lazily(node, job, origin)


def _clone_lazily(node: NodeContext, job: ClaimedJob, origin: str | Snapshot) -> None:
    volume_id = job.volume_id
    spec = RestoreSpec(job.id_of("base_id"), job.id_of("repository"), job.size())
    # What the clone lacks is kept before the pool has it. So a clone without that was made by an
    # attempt whose state was lost; nobody has used it.
    if not (volume_id in node.pool.volumes() and node.restores.has(volume_id)):
        node.restores.remove(volume_id)
        node.pool.delete(volume_id)
        with _snapshot_with_gaps(node, origin, spec.backup_id) as (snapshot, gaps):
            node.restores.prepare(volume_id, spec, gaps)
            node.pool.clone(volume_id, snapshot, spec.size_bytes, job.tick)
    try:
        node.restores.begin(volume_id, spec, lambda: job.heed(0, 0))
    except BaseException:
        if job.stop_reason is not Stop.LOST:
            node.restores.stop(volume_id)
        raise


@contextlib.contextmanager
def _snapshot_with_gaps(
    node: NodeContext, origin: str | Snapshot, base_id: str
) -> Iterator[tuple[Snapshot, MissingExtents]]:
    """A snapshot with the bytes of `origin`, and what the snapshot lacks."""
    if isinstance(origin, Snapshot):
        yield origin, node.restores.snapshot_gaps.of(origin, base_id)
        return
    with taken(node, origin) as (snapshot, gaps):
        yield snapshot, gaps or MissingExtents(base_id, [])


#: Seconds in which nothing is fetched for a lazy fill until it lets others fill.
_TURN = 10.0


class RestoreDamaged(errors.LunrError):
    """Not all of the backup is there any more. {damage} All else is restored. These bytes can't be read until they are written."""  # noqa: E501

    code = "restore_damaged"


class FillYields(errors.LunrError):
    """The volume is used, and others wait to be filled: it goes on when it is its turn again."""

    code = "fill_yields"
    retry = True


class RestoreStopped(errors.LunrError):
    """The rest of the backup is not fetched any more: {reason}"""

    code = "restore_stopped"


def restore(node: NodeContext, job: ClaimedJob) -> None:
    """A volume that can be used as if it had the bytes of a backup (docs/restores.md)."""
    spec = RestoreSpec(job.id_of("backup_id"), job.id_of("repository"), job.size())
    try:
        # Nobody has written to it before its task is kept: one that is there is all zeros.
        node.pool.create(job.volume_id, spec.size_bytes)
        node.restores.begin(job.volume_id, spec, lambda: job.heed(0, 0))
    except BaseException:
        # If the job was lost, another attempt may be at it already.
        if job.stop_reason is not Stop.LOST:
            # The volume stays, all zeros, for the next attempt, or until it is deleted.
            node.restores.remove(job.volume_id)
        raise


def fill(node: NodeContext, job: ClaimedJob) -> None:
    """All blocks of the volume are local; the job follows the fill, and passes messages on."""
    restore = node.restores.need(job.volume_id)
    with job.stoppable(lambda _: restore.wake_waiting()):
        _follow_fill(restore, job)
    restore.is_reported = True


def _follow_fill(restore: LazyRestore, job: ClaimedJob) -> None:
    """Have the volume filled by the API's settings, and report its status, until it is full."""
    settings, done, moved_at = None, -1, time.monotonic()
    while not restore.is_filled:
        latest = RestoreSettings.parse({**job.payload, **job.answer})
        if latest != settings:
            restore.apply_settings(latest)
        settings = latest
        restore.wait_for_change(1.0)
        if job.stop_reason is Stop.CANCELLED:
            restore.apply_settings(RestoreSettings("never"))
        job.heed(0, 0)
        status = restore.status
        job.advance(status.done, status.total)
        job.report_fields = {"fill": status.as_report()}
        if status.done != done:
            done, moved_at = status.done, time.monotonic()
        idle = time.monotonic() - moved_at
        if settings.mode == "lazy" and settings.others_wait and idle > _TURN:
            restore.apply_settings(RestoreSettings("never"))
            raise FillYields
        if status.given_up is not None:
            raise RestoreStopped(reason=status.given_up)
        if status.is_stuck:
            raise RestoreDamaged(damage=" ".join(status.damage_sentences[:MAX_DAMAGE_NAMED]))


def extend(node: NodeContext, job: ClaimedJob) -> None:
    """A larger volume; initiators that use it see it so, too."""
    node.pool.extend(job.volume_id, job.size())
    node.exports.resize(job.volume_id)


def delete(node: NodeContext, job: ClaimedJob) -> None:
    """No volume, and no export of it.

    The API refuses to delete a volume that is exported; should an initiator be
    logged in all the same, nothing is done to it.
    """
    node.exports.detach(job.volume_id)
    node.restores.remove(job.volume_id)
    node.pool.delete(job.volume_id, job.tick)
