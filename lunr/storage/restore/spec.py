"""What a volume is restored from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lunr.common import concurrency, files


@dataclass(frozen=True)
class RestoreSpec:
    """What a volume is restored from; the node keeps it until the API knows that it is full.

    Attributes:
        backup_id: the backup.
        repository: where that is.
        size_bytes: of the volume.
        is_filled: all blocks are local.
        is_clone: dm-clone fills it, not FUSE.
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
