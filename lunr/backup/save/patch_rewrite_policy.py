"""When a patched chunk is written whole again, and which old patch blocks are taken along.

Patches make a save cheap and a restore dear: a chunk's blocks lie in ever more
objects, and an object that was overwritten but for a few blocks must be kept,
and read, for those. Two rules hold this down. docs/decisions/engine.md tells how their
numbers were found.

A chunk is written whole when more than 9/16 of its blocks would come from
patches.

The patch objects of a segment are at most 9/10 as many as its chunks that hold
anything. One more, and the emptiest are emptied: what still lives in them goes
into this save's patches, from the volume, which is at hand. So many that the
next saves need not do it again. As no object is larger than a chunk, a restore
reads at most 1.9 times what the backup holds, in at most 1.9 times as many
requests as there are chunks, whatever was written where and for however long.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")

_WHOLE = Fraction(9, 16)
_PATCHES = Fraction(9, 10)
#: What is left of the allowed objects when there were too many.
_LEFT = Fraction(7, 8)
#: Patch objects that a segment may have in any case: small ones would be written
#: again and again else.
_FEW = 16


def is_written_whole(patched: int, blocks: int) -> bool:
    """Whether a chunk of `blocks` blocks should not have `patched` of them in patches."""
    return patched > blocks * _WHOLE


def taken_along(living: Mapping[T, int], new: int, chunks: int, capacity: int) -> set[T]:
    """Which patch objects of a segment to empty into new ones.

    Args:
        living: how many blocks of each older patch object the segment still needs.
        new: how many blocks go into new patch objects anyway.
        chunks: how many chunks of the segment are not zeros.
        capacity: how many blocks a patch object can have.
    """
    allowed = max(_FEW, int(chunks * _PATCHES))
    if len(living) + -(-new // capacity) <= allowed:
        return set()
    goal = int(allowed * _LEFT)
    taken: set[T] = set()
    for patch in sorted(living, key=living.__getitem__):
        if len(living) - len(taken) + -(-new // capacity) <= goal:
            break
        taken.add(patch)
        new += living[patch]
    return taken
