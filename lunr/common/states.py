"""The states of every record and the moves between them that are legal.

Nothing else may write a status: a move is one ``UPDATE … WHERE status IN
(sources of the move)``, so that of two racing moves one loses and is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Volume(StrEnum):
    """A volume's life. RESTORING is being filled from a backup; external volumes are EXTERNAL."""

    NEW = "NEW"
    BUILDING = "BUILDING"
    RESTORING = "RESTORING"
    EXTERNAL = "EXTERNAL"
    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Snapshot(StrEnum):
    """A snapshot's life."""

    NEW = "NEW"
    SAVING = "SAVING"
    AVAILABLE = "AVAILABLE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Backup(StrEnum):
    """A backup's life. AVAILABLE: every byte is acknowledged by the store."""

    NEW = "NEW"
    SAVING = "SAVING"
    AVAILABLE = "AVAILABLE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Export(StrEnum):
    """An export's life."""

    ATTACHING = "ATTACHING"
    ATTACHED = "ATTACHED"
    DETACHING = "DETACHING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Node(StrEnum):
    """A storage node's life. Only ACTIVE nodes are given new volumes."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    MAINTENANCE = "MAINTENANCE"
    DOWN = "DOWN"


class Job(StrEnum):
    """A job's life."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


_SAVED: Mapping[str, frozenset[str]] = {
    "NEW": frozenset({"SAVING", "DELETING", "ERROR"}),
    "SAVING": frozenset({"AVAILABLE", "DELETING", "ERROR"}),
    "AVAILABLE": frozenset({"DELETING", "ERROR"}),
    "DELETING": frozenset({"DELETED", "ERROR"}),
    "ERROR": frozenset({"DELETING"}),
    "DELETED": frozenset(),
}

#: kind of record -> state -> the states it may move to.
MOVES: Mapping[type[StrEnum], Mapping[str, frozenset[str]]] = {
    Volume: {
        "NEW": frozenset({"BUILDING", "RESTORING", "EXTERNAL", "DELETING", "ERROR"}),
        # RESTORING: a clone of what was itself being restored.
        "BUILDING": frozenset({"ACTIVE", "RESTORING", "DELETING", "ERROR"}),
        "RESTORING": frozenset({"ACTIVE", "DELETING", "ERROR"}),
        "ACTIVE": frozenset({"DELETING", "ERROR"}),
        "DELETING": frozenset({"DELETED", "ERROR"}),
        "ERROR": frozenset({"DELETING"}),
        "DELETED": frozenset(),
        # It is only a record, and that goes as a whole.
        "EXTERNAL": frozenset(),
    },
    Snapshot: _SAVED,
    # From ERROR: a live backup that nobody had heard of for so long was complete after all.
    Backup: {**_SAVED, "ERROR": _SAVED["ERROR"] | {"AVAILABLE"}},
    Export: {
        "ATTACHING": frozenset({"ATTACHED", "DETACHING", "ERROR"}),
        "ATTACHED": frozenset({"DETACHING", "ERROR"}),
        # Back to ATTACHED: the detach was refused because an initiator is logged in.
        "DETACHING": frozenset({"DELETED", "ATTACHED", "ERROR"}),
        "ERROR": frozenset({"DETACHING", "ATTACHING"}),
        "DELETED": frozenset({"ATTACHING"}),
    },
    Node: {
        "PENDING": frozenset({"ACTIVE", "MAINTENANCE"}),
        "ACTIVE": frozenset({"MAINTENANCE", "DOWN"}),
        "MAINTENANCE": frozenset({"ACTIVE"}),
        "DOWN": frozenset({"ACTIVE", "MAINTENANCE"}),
    },
    Job: {
        "QUEUED": frozenset({"RUNNING", "CANCELLED", "FAILED"}),
        # Back to QUEUED: the lease ran out, or an attempt failed that a retry can mend.
        "RUNNING": frozenset({"QUEUED", "DONE", "FAILED", "CANCELLED"}),
        "DONE": frozenset(),
        "FAILED": frozenset(),
        "CANCELLED": frozenset(),
    },
}


def sources(target: StrEnum) -> frozenset[str]:
    """The states from which a record may move to `target`: the ``IN (…)`` of its UPDATE."""
    return frozenset(state for state, to in MOVES[type(target)].items() if target in to)


def is_final(state: StrEnum) -> bool:
    """Whether nothing can follow `state`."""
    return not MOVES[type(state)][state]
