"""Free ports, and waiting for something to become true."""

from __future__ import annotations

import os

from tools.services import loopback
from tools.waiting import PATIENCE, wait_until

__all__ = ["PATIENCE", "SOON", "claim_ports", "free_port", "wait_until"]

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
