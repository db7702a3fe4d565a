"""The steps of a backup at which something is killed.

A few are drawn. ``LUNR_CRASH_STEPS=N`` tries N, ``LUNR_CRASH_STEPS=all`` each of them. What a test
did is printed when it fails; ``LUNR_CRASH_SEED`` repeats it.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest

TRIED = os.environ.get("LUNR_CRASH_STEPS") or "3"
SEED = int(os.environ.get("LUNR_CRASH_SEED") or random.randrange(1 << 32))

#: For tests that go through steps.
patient = pytest.mark.timeout(300 if TRIED == "3" else 4 * 3600)


def drawn(first: int, end: int) -> Iterator[int]:
    """The numbers of those to try, from `first` up to `end`; with "all" it is the caller who ends.

    A backup has not always as many steps: QEMU is asked until it is done.
    """
    print(f"LUNR_CRASH_SEED={SEED} LUNR_CRASH_STEPS={TRIED}")
    if TRIED == "all":
        numbers: Iterator[int] = itertools.count(first)
    else:
        numbers = iter(sorted(random.Random(SEED).sample(range(first, end), int(TRIED))))
    for number in numbers:
        print(f"step {number}")
        yield number
