"""What lunr calls things inside QEMU, so that what a dead client left is known as such.

- The nodes ``lunr-N-filter``, ``lunr-N-scratch`` and ``lunr-N-cut`` and the export ``lunr-N``,
  with N the number of the disk.
- The bitmap ``lunr-since-GROUP``: all that was written since the cut of GROUP. It is kept,
  and goes on, until a later group is complete, so a backup that fails loses nothing.
- The bitmap ``lunr-size-GROUP``, at rest beside it, by which a shrinking is seen
  (:mod:`lunr.live.qemu.bitmaps`); it comes from the node ``lunr-N-tail``.
- The bitmap ``lunr-changed``: what the export shows, a copy of one of those, at rest.
- The node ``lunr-server``, which is nothing but a note that the NBD server is ours.
- The node ``lunr-cutting``, a note too: the guest ran, and we may have stopped or frozen it.
- The note ``lunr-N NODE``, which goes with the open scratch file, says what the filter stands
  before. QEMU keeps it as long as it uses the file.
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
    """The node that stands before disk `number`."""
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
    """What goes with the scratch file of disk `number`, which is `node`."""
    return f"{PREFIX}{number} {node}"
