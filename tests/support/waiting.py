"""Free ports, and waiting for something to become true."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from tools.services import loopback
from tools.testing.patience import patient

T = TypeVar("T")

#: Seconds that a test waits for anything at most. Nothing should take that long: it is how long a
#: loaded machine is given. LUNR_TEST_PATIENCE multiplies it, on a slow one.
PATIENCE = patient(60.0)

#: Seconds that something may take on a loaded machine of which an idle one needs less than one:
#: to tell it from what does not end, or not for a minute.
SOON = PATIENCE / 4

_handed_out: set[int] = set()


def claim_ports(number: int, of: int) -> None:
    """Have this process, and what it starts, choose from ports that are its own."""
    first, last = loopback.FIRST_PORT, loopback.LAST_PORT
    share = (last - first) // of
    begin = first + number % of * share
    os.environ["LUNR_PORTS"] = f"{begin}-{begin + share - 1}"


def free_port() -> int:
    """A loopback port nothing listens on, a different one at each call."""
    port = loopback.free_port(_handed_out)
    _handed_out.add(port)
    return port


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
