"""Waiting for something to become true, with one patience for everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tools.testing.patience import patient

T = TypeVar("T")

#: Seconds that anything is waited for at most. Nothing should take that long: it is how long a
#: loaded machine is given. LUNR_TEST_PATIENCE multiplies it, on a slow one.
PATIENCE = patient(60.0)


def wait_until(condition: Callable[[], T], what: str = "", interval: float = 0.02) -> T:
    """Call `condition` until it returns something true, and return that.

    Raises:
        AssertionError: `PATIENCE` is over; the message says `what` was waited for.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what or condition.__name__}")
        time.sleep(interval)
