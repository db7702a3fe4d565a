"""Free ports, and waiting for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tools.services import loopback

T = TypeVar("T")

_handed_out: set[int] = set()


def free_port() -> int:
    """A loopback port nothing listens on, a different one at each call."""
    port = loopback.free_port(_handed_out)
    _handed_out.add(port)
    return port


def wait_until(
    condition: Callable[[], T], timeout: float = 30.0, what: str = "", interval: float = 0.02
) -> T:
    """Call `condition` until it returns something true, and return that.

    Raises:
        AssertionError: `timeout` seconds went by; the message says `what` was waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition.__name__}")
        time.sleep(interval)
