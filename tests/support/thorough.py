"""What only `tools/test --thorough` runs: tests that take long, and more examples of others.

A test marked ``@pytest.mark.thorough`` has a smaller case of it in the default run.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest

#: Whether this run may take hours.
THOROUGH = bool(os.environ.get("LUNR_THOROUGH"))


def examples(default: int, thorough: int) -> int:
    """How many examples a property test tries."""
    return thorough if THOROUGH else default


def steps() -> Iterator[int]:
    """The steps to kill something at, without an end: all of them, or by default a third.

    The first one is always among them; with it go each third of the others, from one on that the
    run's seed decides (LUNR_CRASH_SEED).
    """
    if THOROUGH:
        return itertools.count(1)
    seed = os.environ.get("LUNR_CRASH_SEED")
    return itertools.chain([1], itertools.count(2 + random.Random(seed).randrange(3), 3))


def deselect(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of `items` what takes long, unless this run is thorough."""
    if THOROUGH:
        return
    long = [item for item in items if item.get_closest_marker("thorough")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
