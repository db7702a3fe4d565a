"""When a patched chunk is written whole again, and which old patch objects are rewritten.

Patches make a save cheap and a restore dear: a chunk's blocks lie in ever more
objects, and an object of which a few blocks are still needed must be kept and read.
Two rules limit this. docs/decisions/engine.md says how their numbers were measured.

A chunk is written whole when more than 9/16 of its blocks would come from
patches.

The patch objects of a segment are at most 9/10 as many as its chunks that are
not zeros. With one more, the save rewrites those with the fewest needed blocks: it
reads these blocks from the volume and stores them in its own patches. It rewrites so many
that the next saves need not. As no object is larger than a chunk, a restore
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
#: The share of the allowed objects that is left after a rewrite.
_LEFT = Fraction(7, 8)
#: Patch objects that a segment may have in any case: else small ones would be rewritten by
#: every save.
_FEW = 16


def is_written_whole(patched: int, blocks: int) -> bool:
    """Whether `patched` of a chunk's `blocks` blocks are too many to be in patches."""
    return patched > blocks * _WHOLE


def patches_to_rewrite(living: Mapping[T, int], new: int, chunks: int, capacity: int) -> set[T]:
    """Which older patch objects of a segment the save rewrites.

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
    rewritten: set[T] = set()
    for patch in sorted(living, key=living.__getitem__):
        if len(living) - len(rewritten) + -(-new // capacity) <= goal:
            break
        rewritten.add(patch)
        new += living[patch]
    return rewritten
