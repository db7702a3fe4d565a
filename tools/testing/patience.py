"""How long a slow machine is given: LUNR_TEST_PATIENCE multiplies every limit of the tests."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("LUNR_TEST_PATIENCE", "1"))
#: What a test may take more that tries more.
_THOROUGH = 10.0 if os.environ.get("LUNR_THOROUGH") else 1.0


def patient(seconds: float) -> float:
    """How long what takes `seconds` at most on an ordinary machine may take on this one."""
    return seconds * FACTOR


def limit(seconds: float) -> float:
    """How long a test may take that may take `seconds` in an ordinary run."""
    return patient(seconds) * _THOROUGH
