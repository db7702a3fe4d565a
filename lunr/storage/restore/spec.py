"""What a volume is filled from, and how far that is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lunr.common import concurrency, files


@dataclass(frozen=True)
class RestoreSpec:
    """What a volume is filled from; kept on the node until it is full.

    Attributes:
        is_filled: nothing is absent any more.
        is_clone: it is filled by dm-clone, not through FUSE.
    """

    backup_id: str
    repository: str
    size_bytes: int
    is_filled: bool = False
    is_clone: bool = False

    def write(self, path: Path) -> None:
        """Keep it at `path`, so that a power cut does not lose it."""
        concurrency.blocking(files.write, path, json.dumps(asdict(self)))
        files.fsync(path.parent)

    @classmethod
    def read(cls, path: Path) -> RestoreSpec:
        """What is kept at `path`.

        Raises:
            FileNotFoundError: nothing.
        """
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Progress:
    """How far a fill is.

    Attributes:
        done: bytes that are there, of `total`.
        rate: bytes a second.
        remaining: seconds, or None: nobody knows.
        damaged: parts of it that can't be fetched, because the backup is damaged.
        missing: parts of it that are not there yet, the damaged ones included.
    """

    done: int = 0
    total: int = 0
    rate: int = 0
    remaining: int | None = None
    damaged: int = 0
    missing: int = 1
