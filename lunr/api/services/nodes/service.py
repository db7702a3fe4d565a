"""Storage nodes: what their operators and they themselves tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import completion, queue
from lunr.api.services import views
from lunr.api.services.accounts import tokens
from lunr.api.services.exports.node_exports import describe_exports
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.volumes import lazy_restore, placement
from lunr.common import errors, ids, times
from lunr.common.states import Export as ExportState
from lunr.common.states import Job as JobState
from lunr.common.states import Node as State
from lunr.common.states import Snapshot as SnapshotState
from lunr.common.states import Volume as VolumeState
from lunr.common.units import GIB
from lunr.db.models import Export, Job, Node, Snapshot, Token, Volume, columns
from lunr.db.session import on_commit
from lunr.db.transitions import KEYS, move, try_move

_ROWS = select(*columns(Node))

#: What is lost with a node, and the way of each to its end.
_GONE: tuple[tuple[type[Export] | type[Snapshot] | type[Volume], tuple[StrEnum, ...]], ...] = (
    (Export, (ExportState.DETACHING, ExportState.DELETED)),
    (Snapshot, (SnapshotState.DELETING, SnapshotState.DELETED)),
    (Volume, (VolumeState.DELETING, VolumeState.DELETED)),
)


class NodeRestarted(errors.LunrError):
    """The agent of the node {node} was started anew while it worked on the job."""

    code = "node_restarted"
    retry = True


class Nodes:
    """What an admin, and the agent of a node, can do with nodes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of nodes."""
        with self._context.db.read() as connection:
            promised = placement.allocated(connection)
            listing = Listing(
                "nodes",
                Node,
                _ROWS,
                lambda row: views.node(row, promised.get(row.id, 0)),
                (Node.created_at, Node.id),
                Node.id,
                hides=None,
            )
            return listing.page(connection, query, self._context.settings.page_limit)

    def get(self, id: str) -> Any:
        """The node.

        Raises:
            errors.NotFound: there is none of that id.
        """
        with self._context.db.read() as connection:
            row = connection.execute(_ROWS.where(Node.id == id)).one_or_none()
            if row is None:
                raise errors.NotFound(kind="node", id=id)
            return views.node(row, placement.allocated(connection, id).get(id, 0))

    def create(self, id: str, **settings: Any) -> Any:
        """Make a node, PENDING until its first heartbeat; ``token`` in the answer is its secret.

        Args:
            settings: ``weight``, ``group``, ``volume_types``, and ``status`` MAINTENANCE.

        Raises:
            errors.IdInUse: there is one of that id.
        """
        return self._context.db.write(self._create, ids.check(id), settings)

    def _create(self, session: Session, id: str, settings: dict[str, Any]) -> Any:
        if session.get(Node, id) is not None:
            raise errors.IdInUse(kind="node", id=id, differs="it is taken")
        session.add(Node(id=id))
        session.flush()
        self._set(session, id, settings)
        token = tokens.add(session, "node", node_id=id)["token"]
        return {**views.node(session.get_one(Node, id), 0), "token": token}

    def update(self, id: str, **settings: Any) -> Any:
        """Change a node as :meth:`create` sets it; ``status`` ACTIVE or MAINTENANCE.

        Raises:
            errors.NotFound: there is none of that id.
            errors.WrongState: it can't have that status now.
        """
        self._context.db.write(self._set, id, settings)
        return self.get(id)

    def _set(self, session: Session, id: str, settings: dict[str, Any]) -> None:
        node = _lock(session, id)
        status = settings.pop("status", None)
        for name, value in settings.items():
            setattr(node, name, value)
        if status is not None and status != node.status:
            move(session, Node, id, State(status), f"make it {status}")
            queue.unassign(session, self._context)

    def delete(self, id: str, force: bool = False) -> None:
        """Forget a node and revoke its token.

        Args:
            force: it is lost with all that is on it: its jobs fail, its volumes and
                snapshots are DELETED without it.

        Raises:
            errors.NotFound: there is none of that id.
            errors.InUse: it has volumes.
        """
        self._context.db.write(self._delete, id, force)

    def _delete(self, session: Session, id: str, force: bool) -> None:
        node = _lock(session, id)
        has = exists().where(Volume.node_id == id, Volume.status != "DELETED")
        if session.scalar(select(has)) and not force:
            raise errors.InUse(kind="node", id=id, reason="it has volumes")
        error = NodeLost(node=id).as_dict()
        live = select(Job).where(Job.node_id == id, Job.status.in_(queue.LIVE))
        for job in session.scalars(live.with_for_update()).all():
            completion.complete(session, self._context, job, JobState.FAILED, error)
        for model, gone in _GONE:
            for found in session.scalars(
                select(KEYS[model]).where(model.node_id == id, model.status != "DELETED")
            ).all():
                for state in gone:
                    try_move(session, model, found, state, reason=error["reason"])
        for token in session.scalars(select(Token).where(Token.node_id == id)):
            session.delete(token)
        session.flush()
        session.delete(node)
        session.flush()
        queue.unassign(session, self._context)

    def heartbeat(self, id: str, told: dict[str, Any]) -> Any:
        """A sign of life; a PENDING or DOWN node becomes ACTIVE.

        Args:
            told: as in docs/api.md; ``sessions`` are those now connected. A node that
                says nothing of ``full`` or ``limits_io`` is older than they are.

        Raises:
            errors.NotFound: there is none of that id.
        """
        self._context.db.write(self._heartbeat, id, dict(told))
        return self.get(id)

    def _heartbeat(self, session: Session, id: str, told: dict[str, Any]) -> None:
        node = _lock(session, id)
        sessions = told.pop("sessions", None)
        lost = told.pop("lost_snapshots", None)
        filled = told.pop("filled", None)
        troubles = told.pop("troubles", None)
        for name, value in {"full": "", "limits_io": False, **told}.items():
            setattr(node, name, value)
        node.last_seen = times.now()
        session.flush()
        if try_move(session, Node, id, State.ACTIVE, only=(State.PENDING, State.DOWN)):
            on_commit(session, lambda: self._context.notifier.notify(id))
        if filled:
            lazy_restore.fill_full(session, self._context, id, filled)
        if troubles is not None:
            lazy_restore.set_problems(session, id, troubles)
        if lost:
            self._lose_snapshots(session, id, set(lost))
        if sessions is None:
            return
        for export in session.scalars(
            select(Export).where(Export.node_id == id, Export.status != "DELETED")
        ):
            now = sessions.get(export.volume_id, [])
            if now != export.sessions:
                export.sessions = now

    def _lose_snapshots(self, session: Session, id: str, lost: set[str]) -> None:
        there = select(Snapshot.id).where(
            Snapshot.node_id == id, Snapshot.status == SnapshotState.AVAILABLE
        )
        for snapshot in lost.intersection(session.scalars(there)):
            reason = str(SnapshotLost())
            only = (SnapshotState.AVAILABLE,)
            try_move(session, Snapshot, snapshot, SnapshotState.ERROR, only, reason=reason)

    def reconcile(self, id: str, volumes: Sequence[str], snapshots: Sequence[str]) -> Any:
        """The agent was started: its running jobs are queued again; what ought to be there?

        Args:
            volumes: ids of those that are there; `snapshots`: the same of those.

        Returns:
            As in docs/api.md.

        Raises:
            errors.NotFound: there is no such node.
        """
        return self._context.db.write(self._reconcile, id, volumes, snapshots)

    def _reconcile(
        self, session: Session, id: str, volumes: Sequence[str], snapshots: Sequence[str]
    ) -> Any:
        node = _lock(session, id)
        node.epoch += 1  # claims that the old agent left waiting get nothing
        error = NodeRestarted(node=id).as_dict()
        running = select(Job).where(Job.node_id == id, Job.status == JobState.RUNNING)
        for job in session.scalars(running.with_for_update()).all():
            completion.retry_or_fail(session, self._context, job, error, delay=False)
        session.flush()
        queued = session.execute(
            select(Job.id, Job.kind, Job.subject_id)
            .where(Job.node_id == id, Job.status == JobState.QUEUED)
            .order_by(Job.seq)
        )
        known_volumes = {
            row.id: row.status
            for row in session.execute(select(Volume.id, Volume.status).where(Volume.node_id == id))
        }
        restoring = select(Volume.id).where(
            Volume.node_id == id,
            Volume.base_id.is_not(None),
            Volume.status.in_((VolumeState.BUILDING, VolumeState.RESTORING)),
        )
        known_snapshots = {
            row.id: row.status
            for row in session.execute(
                select(Snapshot.id, Snapshot.status).where(Snapshot.node_id == id)
            )
        }
        return {
            "volumes": [
                {"id": volume, "size_bytes": size * GIB}
                for volume, size in session.execute(
                    select(Volume.id, Volume.size).where(
                        Volume.node_id == id,
                        or_(
                            Volume.status == VolumeState.ACTIVE,
                            and_(Volume.status == VolumeState.RESTORING, Volume.usable),
                        ),
                    )
                )
            ],
            "filling": session.scalars(restoring).all(),
            "snapshots": [
                {"id": snapshot, "volume_id": volume}
                for snapshot, volume in session.execute(
                    select(Snapshot.id, Snapshot.volume_id).where(
                        Snapshot.node_id == id, Snapshot.status == SnapshotState.AVAILABLE
                    )
                )
            ],
            "exports": self._exports(session, id),
            "delete": {
                "volumes": [v for v in volumes if known_volumes.get(v) == "DELETED"],
                "snapshots": [s for s in snapshots if known_snapshots.get(s) == "DELETED"],
            },
            "unknown": {
                "volumes": [v for v in volumes if v not in known_volumes],
                "snapshots": [s for s in snapshots if s not in known_snapshots],
            },
            "jobs": [
                {"id": job, "kind": kind, "subject_id": subject} for job, kind, subject in queued
            ],
        }

    def exports(self, id: str) -> Any:
        """``{"exports": [...]}``: those that must be there now, with their credentials.

        An export that is being attached or detached is not among them: its job
        sees to it, and nobody is to put back what a job has just taken away.
        """
        return {"exports": self._context.db.write(self._exports, id)}

    def _exports(self, session: Session, id: str) -> Sequence[dict[str, Any]]:
        return describe_exports(
            session,
            self._context.secret_box,
            Export.node_id == id,
            Export.status == ExportState.ATTACHED,
        )

    def mark_down(self, now: datetime) -> Sequence[str]:
        """Mark ACTIVE nodes without a fresh heartbeat DOWN; their ids."""
        return self._context.db.write(self._mark_down, now)

    def _mark_down(self, session: Session, now: datetime) -> Sequence[str]:
        oldest = now - timedelta(seconds=self._context.settings.node_timeout)
        silent = session.scalars(
            select(Node.id).where(
                Node.status == State.ACTIVE, or_(Node.last_seen.is_(None), Node.last_seen < oldest)
            )
        ).all()
        down = [id for id in silent if try_move(session, Node, id, State.DOWN)]
        queue.unassign(session, self._context)
        return down


class SnapshotLost(errors.LunrError):
    """Its bytes are lost: more of its volume was overwritten than its node had room to keep."""

    code = "snapshot_lost"


class NodeLost(errors.LunrError):
    """The storage node {node} was removed with all that was on it."""

    code = "node_lost"


def _lock(session: Session, id: str) -> Node:
    node = session.scalar(select(Node).where(Node.id == id).with_for_update(key_share=True))
    if node is None:
        raise errors.NotFound(kind="node", id=id)
    return node
