"""The states of every record and the moves between them that are legal.

Only a move may write a status. It is one ``UPDATE … WHERE status IN (sources of the move)``: of
two racing moves one fails, and reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Volume(StrEnum):
    """A volume's states. RESTORING: its restore is not complete; EXTERNAL: external volumes."""

    NEW = "NEW"
    BUILDING = "BUILDING"
    RESTORING = "RESTORING"
    EXTERNAL = "EXTERNAL"
    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Snapshot(StrEnum):
    """A snapshot's states."""

    NEW = "NEW"
    SAVING = "SAVING"
    AVAILABLE = "AVAILABLE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Backup(StrEnum):
    """A backup's or backup group's states. AVAILABLE: the store has acknowledged every byte."""

    NEW = "NEW"
    SAVING = "SAVING"
    AVAILABLE = "AVAILABLE"
    DELETING = "DELETING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Export(StrEnum):
    """An export's states."""

    ATTACHING = "ATTACHING"
    ATTACHED = "ATTACHED"
    DETACHING = "DETACHING"
    DELETED = "DELETED"
    ERROR = "ERROR"


class Node(StrEnum):
    """A storage node's states. Only ACTIVE nodes get new volumes."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    MAINTENANCE = "MAINTENANCE"
    DOWN = "DOWN"


class Job(StrEnum):
    """A job's states."""

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
        # RESTORING: a clone of a volume whose restore is not complete.
        "BUILDING": frozenset({"ACTIVE", "RESTORING", "DELETING", "ERROR"}),
        "RESTORING": frozenset({"ACTIVE", "DELETING", "ERROR"}),
        "ACTIVE": frozenset({"DELETING", "ERROR"}),
        "DELETING": frozenset({"DELETED", "ERROR"}),
        "ERROR": frozenset({"DELETING"}),
        "DELETED": frozenset(),
        # Its record is deleted, without a change of state.
        "EXTERNAL": frozenset(),
    },
    Snapshot: _SAVED,
    # From ERROR: an external save was complete although its lease had expired.
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
        # Back to QUEUED: the lease expired, or an attempt failed and will be repeated.
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
    """Whether a record can't leave `state`."""
    return not MOVES[type(state)][state]
