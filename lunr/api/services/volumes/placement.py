"""Which node gets a new volume; its room is reserved in the same transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session

from lunr.api.context import Context, Settings
from lunr.common import errors, times
from lunr.common.states import Node as State
from lunr.common.units import GIB
from lunr.db.models import Node, Volume


@dataclass(frozen=True)
class PlacementRequest:
    """What a volume needs of its node.

    Attributes:
        size: GiB.
        volume_type: the name of its type.
        limits_io: its type has limits that the node must enforce.
        node_id: it must be this node (an admin said so).
        source: the node of what it is made from. That one is preferred: to any other
            the bytes have to be copied, for which the source must be alive.
        away_from: ids of nodes that it must not be.
        away_from_groups: groups of nodes that it must not be in.
    """

    size: int
    volume_type: str
    limits_io: bool = False
    node_id: str | None = None
    source: str | None = None
    away_from: Collection[str] = ()
    away_from_groups: Collection[str] = ()


def allocated(reader: Session | Connection, node_id: str | None = None) -> dict[str, int]:
    """Bytes promised to the volumes of each node (or of one)."""
    statement = (
        select(Volume.node_id, func.sum(Volume.reserved))
        .where(Volume.status != "DELETED")
        .group_by(Volume.node_id)
    )
    if node_id is not None:
        statement = statement.where(Volume.node_id == node_id)
    sums = reader.execute(statement)
    return {node: int(gigabytes) * GIB for node, gigabytes in sums if node is not None}


def place(session: Session, context: Context, requested: PlacementRequest) -> str:
    """The id of the node for the volume; its row is locked, so the room stays until the commit.

    Raises:
        errors.NoRoom: no node fits; the reason says why the last ones did not.
    """
    nodes = session.scalars(select(Node).order_by(Node.id)).all()
    alive = {node.id for node in nodes if _is_alive(node, context.settings)}
    refused = {node.id: _refusal(node, requested, alive) for node in nodes}
    fit = [node for node in nodes if refused[node.id] is None]
    promised = allocated(session, fit[0].id if len(fit) == 1 else None)
    strategy = context.settings.placement
    fit.sort(key=lambda node: _rank(node, promised.get(node.id, 0), requested, strategy))
    for node in fit:
        if reserve(session, node.id, requested.size):
            return node.id
        refused[node.id] = f"has no {requested.size} GiB left"
    raise errors.NoRoom(reason=_explain(refused, requested))


def reserve(session: Session, node_id: str, gigabytes: int) -> bool:
    """Lock the node's row and say whether so much more can be promised on it."""
    capacity = session.scalar(
        select(Node.capacity_bytes).where(Node.id == node_id).with_for_update(key_share=True)
    )
    if capacity is None:
        return False
    return allocated(session, node_id).get(node_id, 0) + gigabytes * GIB <= capacity


def _is_alive(node: Node, settings: Settings) -> bool:
    oldest = times.now() - timedelta(seconds=settings.node_timeout)
    return node.last_seen is not None and node.last_seen >= oldest


def _refusal(node: Node, requested: PlacementRequest, alive: Collection[str]) -> str | None:
    """Why the volume can't be on the node; None: it can, as far as its room goes."""
    copied = requested.source not in (None, node.id)
    reasons = (
        (requested.node_id not in (None, node.id), "is not where it must be"),
        (node.status != State.ACTIVE, f"is {node.status}"),
        (node.id not in alive, "gives no sign of life"),
        (node.weight <= 0, "takes no new volumes (weight 0)"),
        (bool(node.full), f"takes no new volumes ({node.full.rstrip('.')})"),
        (
            requested.volume_type not in node.volume_types,
            f"has no volumes of the type {requested.volume_type}",
        ),
        (
            requested.limits_io and not node.limits_io,
            f"can't limit I/O, as the type {requested.volume_type} asks",
        ),
        (
            node.id in requested.away_from
            or (node.group != "" and node.group in requested.away_from_groups),
            "is excluded by the affinity",
        ),
        (
            copied and requested.source not in alive,
            "can't be copied to: the source's node gives no sign of life",
        ),
    )
    return next((reason for refuses, reason in reasons if refuses), None)


def _rank(
    node: Node, promised: int, requested: PlacementRequest, strategy: str
) -> tuple[bool, float, str]:
    """Sorts the best node first: the source's, then the emptiest or the fullest by weight."""
    full = (promised + requested.size * GIB) / max(node.capacity_bytes, 1)
    share = full if strategy == "deep_fill" else 1 - full
    return node.id != requested.source, -node.weight * share, node.id


def _explain(refused: dict[str, str | None], requested: PlacementRequest) -> str:
    """One reason for people; what other tenants' nodes are called is none of their business."""
    if requested.node_id is not None:
        return f"the node {refused.get(requested.node_id) or 'it must be on does not exist'}"
    counts: dict[str, int] = {}
    for reason in refused.values():
        counts[str(reason)] = counts.get(str(reason), 0) + 1
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return told or "there are no nodes"
