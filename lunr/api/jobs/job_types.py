"""The kinds of jobs: what each does to the record it is about.

Lanes: jobs of one lane are done one at a time, oldest first. All that touches
a volume's bytes or its snapshots shares the volume's lane; exports have their
own, so that a backup of an hour keeps nobody from attaching; so has the fill of a
restored volume, which is used and backed up meanwhile; work on a stored
backup is in the backup's lane, and an account's garbage in the account's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lunr.common import states
from lunr.db.models import Backup, Export, Snapshot, Volume

Record = type[Volume] | type[Snapshot] | type[Backup] | type[Export]


@dataclass(frozen=True)
class Kind:
    """What a job of this kind does to its subject.

    Attributes:
        model: the subject's, None for an account's repository.
        lane: what the lane is named after: "volume", "export", "fill", "backup", "repository",
            "repository.verify" (it reads for hours, and no collection need wait for it).
        begins: the state the subject moves to when a node claims the job.
        done: the state it moves to when the job is DONE; None: it stays where it is.
        failed: the same for FAILED and CANCELLED.
        roving: any ACTIVE node can do it; otherwise only the volume's.
        shown: the subject shows how far the job is.
        unending: it takes as long as it takes, and is tried again as often as it must be.
        foreign: seconds of the lease of somebody who is no node and does it: it is given to no
            node, and over when the lease is; 0: nodes do it.
    """

    model: Record | None
    lane: str
    begins: StrEnum | None = None
    done: StrEnum | None = None
    failed: StrEnum | None = None
    roving: bool = False
    shown: bool = False
    unending: bool = False
    foreign: int = 0


_V, _S, _B, _E = states.Volume, states.Snapshot, states.Backup, states.Export

KINDS: dict[str, Kind] = {
    "volume.create": Kind(Volume, "volume", _V.BUILDING, _V.ACTIVE, _V.ERROR, shown=True),
    "volume.clone": Kind(Volume, "volume", _V.BUILDING, _V.ACTIVE, _V.ERROR, shown=True),
    # It can be used then, and is ACTIVE when it is full.
    "volume.restore": Kind(Volume, "volume", _V.RESTORING, None, _V.ERROR),
    "volume.fill": Kind(Volume, "fill", None, _V.ACTIVE, None, shown=True, unending=True),
    "volume.extend": Kind(Volume, "volume"),
    "volume.delete": Kind(Volume, "volume", None, _V.DELETED, _V.ERROR, shown=True),
    "snapshot.create": Kind(Snapshot, "volume", _S.SAVING, _S.AVAILABLE, _S.ERROR, shown=True),
    "snapshot.delete": Kind(Snapshot, "volume", None, _S.DELETED, _S.ERROR),
    "export.create": Kind(Export, "export", None, _E.ATTACHED, _E.ERROR),
    # A detach that was refused goes back to where it came from: see endings.
    "export.delete": Kind(Export, "export", None, _E.DELETED, _E.ATTACHED),
    "backup.save": Kind(Backup, "volume", _B.SAVING, _B.AVAILABLE, _B.ERROR, shown=True),
    "backup.delete": Kind(Backup, "backup", None, _B.DELETED, _B.ERROR, roving=True),
    "backup.verify": Kind(Backup, "backup", roving=True),
    "group.save": Kind(Backup, "backup", None, _B.AVAILABLE, _B.ERROR, shown=True, foreign=3600),
    "repository.collect": Kind(None, "repository", roving=True),
    "repository.sweep": Kind(None, "repository", roving=True),
    "repository.verify": Kind(None, "repository.verify", roving=True),
}

ROVING = tuple(name for name, kind in KINDS.items() if kind.roving)


def lane(kind: str, account_id: str, volume_id: str | None, subject_id: str) -> str:
    """The lane of a job."""
    name = KINDS[kind].lane
    owners = {"backup": subject_id, **dict.fromkeys(("volume", "export", "fill"), volume_id)}
    return f"{name}/{owners.get(name, account_id)}"
