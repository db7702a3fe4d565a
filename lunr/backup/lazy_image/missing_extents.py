"""The missing ranges of a snapshot of a lazily restored volume, in a file beside the snapshot.

The file has two lines: the BLAKE3 of the second in hexadecimal, and a JSON object
with ``backup_id`` and ``extents`` (``[[first byte, end], …]``, in order).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from lunr.common import files
from lunr.common.errors import LunrError


class GapsCorrupt(LunrError):
    """The file {path} is corrupt: the missing bytes of its snapshot are not known any more."""

    code = "gaps_corrupt"


@dataclass(frozen=True)
class MissingExtents:
    """The missing ranges, and the backup that has them.

    Attributes:
        backup_id: the backing backup.
        extents: the ranges (first byte, end), in order; they do not touch.
    """

    backup_id: str
    extents: Sequence[tuple[int, int]]

    def write(self, path: Path) -> None:
        """Write the file `path`; the folder is not synced.

        Raises:
            OSError: it can't be written.
        """
        text = json.dumps({"backup_id": self.backup_id, "extents": self.extents})
        files.write(path, f"{_checksum(text)}\n{text}\n")

    @classmethod
    def read(cls, path: Path) -> MissingExtents:
        """The content of the file `path`.

        Raises:
            FileNotFoundError: there is none.
            GapsCorrupt: its checksum does not match.
        """
        checksum, _, text = path.read_bytes().decode(errors="replace").partition("\n")
        text = text.removesuffix("\n")
        if checksum != _checksum(text):
            raise GapsCorrupt(path=path)
        kept = json.loads(text)
        return cls(kept["backup_id"], [(start, end) for start, end in kept["extents"]])


def _checksum(text: str) -> str:
    return blake3(text.encode()).hexdigest()
