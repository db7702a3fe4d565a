"""How long a slow machine is given: LUNR_TEST_PATIENCE multiplies every limit of the tests."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("LUNR_TEST_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """How long `seconds` of an ordinary machine may take on this one."""
    return seconds * FACTOR
