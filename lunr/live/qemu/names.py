"""lunr's names inside QEMU, by which a cleanup recognizes the remains of a killed backup.

- The nodes ``lunr-N-filter``, ``lunr-N-scratch`` and ``lunr-N-cut`` and the export ``lunr-N``,
  with N the number of the disk.
- The bitmap ``lunr-since-GROUP``: all writes since the cut of GROUP. It stays active until a
  later group is complete, so that a failed backup loses no changes.
- The disabled bitmap ``lunr-size-GROUP`` beside it, which shows whether the disk has shrunk
  (:mod:`lunr.live.qemu.bitmaps`); it comes from the node ``lunr-N-tail``.
- The disabled bitmap ``lunr-changed``: a copy of one of those for the export.
- The node ``lunr-server``: a note that the NBD server is lunr's.
- The node ``lunr-cutting``: a note that the guest ran, and lunr may have stopped or frozen it.
- The note ``lunr-N NODE`` of the descriptor of the scratch file: the node behind the filter.
  QEMU keeps it as long as it uses the file.
"""

from __future__ import annotations

import re

PREFIX = "lunr-"
SINCE = f"{PREFIX}since-"
SIZE = f"{PREFIX}size-"
CHANGED = f"{PREFIX}changed"
SERVER = f"{PREFIX}server"
CUTTING = f"{PREFIX}cutting"

#: The nodes' names.
FILTER = re.compile(rf"{PREFIX}(?P<number>\d+)-filter")
NODE = re.compile(rf"{PREFIX}(?P<number>\d+)-(cut|filter|scratch|tail)")
EXPORT = re.compile(rf"{PREFIX}(?P<number>\d+)")
NOTE = re.compile(rf"{PREFIX}(?P<number>\d+) (?P<node>.+)")


def scratch(number: int) -> str:
    """The node of the scratch file of disk `number`."""
    return f"{PREFIX}{number}-scratch"


def filter_of(number: int) -> str:
    """The filter node before disk `number`."""
    return f"{PREFIX}{number}-filter"


def cut(number: int) -> str:
    """The node that shows disk `number` as it was at the cut."""
    return f"{PREFIX}{number}-cut"


def tail(number: int) -> str:
    """The node that the mark of disk `number` comes from."""
    return f"{PREFIX}{number}-tail"


def export(number: int) -> str:
    """The NBD export of disk `number`."""
    return f"{PREFIX}{number}"


def note(number: int, node: str) -> str:
    """The note of the scratch file of disk `number`, whose node is `node`."""
    return f"{PREFIX}{number} {node}"
