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
from lunr.storage.restore.fuse_restore import FuseRestore
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import DAMAGE_TOLD


def create(node: NodeContext, job: ClaimedJob) -> None:
    """An empty volume."""
    node.pool.create(job.volume_id, job.size())


def clone(node: NodeContext, job: ClaimedJob) -> None:
    """A volume with the bytes of a snapshot or of another volume.

    Where these are of a volume that was being filled, or is, it fills as that one does.
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
        _clone_lacking(node, job, origin)


def _clone_lacking(node: NodeContext, job: ClaimedJob, origin: str | Snapshot) -> None:
    volume_id = job.volume_id
    task = RestoreSpec(job.id_of("base_id"), job.id_of("repository"), job.size())
    # What it lacks is kept before the pool has it. So one without was made by an attempt whose
    # state was lost; nobody has used it.
    if not (volume_id in node.pool.volumes() and node.fillings.has(volume_id)):
        node.fillings.remove(volume_id)
        node.pool.delete(volume_id)
        with _standing(node, origin, task.backup_id) as (snapshot, gaps):
            node.fillings.prepare(volume_id, task, gaps)
            node.pool.clone(volume_id, snapshot, task.size_bytes, job.tick)
    try:
        node.fillings.begin(volume_id, task, lambda: job.heed(0, 0))
    except BaseException:
        if job.stop_reason is not Stop.LOST:
            node.fillings.stop(volume_id)
        raise


@contextlib.contextmanager
def _standing(
    node: NodeContext, origin: str | Snapshot, base_id: str
) -> Iterator[tuple[Snapshot, MissingExtents]]:
    """A snapshot with the bytes of `origin`, and what it lacks."""
    if isinstance(origin, Snapshot):
        yield origin, node.fillings.lacking.of(origin, base_id)
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
    task = RestoreSpec(job.id_of("backup_id"), job.id_of("repository"), job.size())
    try:
        # Nobody has written to it before its task is kept: one that is there is all zeros.
        node.pool.create(job.volume_id, task.size_bytes)
        node.fillings.begin(job.volume_id, task, lambda: job.heed(0, 0))
    except BaseException:
        # If the job was lost, another attempt may be at it already.
        if job.stop_reason is not Stop.LOST:
            # The volume stays, all zeros, for the next attempt, or until it is deleted.
            node.fillings.remove(job.volume_id)
        raise


def fill(node: NodeContext, job: ClaimedJob) -> None:
    """All bytes of the backup on the volume; as long as it is filled, the job is about that."""
    filling = node.fillings.need(job.volume_id)
    with job.stoppable(lambda _: filling.wake()):
        _follow(filling, job)
    filling.is_told = True


def _follow(filling: FuseRestore, job: ClaimedJob) -> None:
    """Have it filled as the API says, until it is full."""
    wanted, done, moved_at = None, -1, time.monotonic()
    while not filling.is_filled:
        told = {**job.payload, **job.orders}
        if wanted != (wanted := (str(told["fill"]), int(told["fill_limit_bytes"]))):
            filling.fill(*wanted)
        filling.wait(1.0)
        if job.stop_reason is Stop.CANCELLED:
            filling.fill("never", 0)
        job.heed(0, 0)
        progress = filling.news.progress
        job.advance(progress.done, progress.total)
        job.news = {
            "fill": {
                "rate": progress.rate,
                "remaining": progress.remaining,
                "trouble": filling.trouble,
            }
        }
        if progress.done != done:
            done, moved_at = progress.done, time.monotonic()
        idle = time.monotonic() - moved_at
        if wanted[0] == "lazy" and told.get("others_wait") and idle > _TURN:
            filling.fill("never", 0)
            raise FillYields
        if filling.news.given_up is not None:
            raise RestoreStopped(reason=filling.news.given_up)
        if filling.news.is_stuck:
            raise RestoreDamaged(damage=" ".join(filling.news.damaged[:DAMAGE_TOLD]))


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
    node.fillings.remove(job.volume_id)
    node.pool.delete(job.volume_id, job.tick)
