"""Limits of bytes a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Limits the bytes a second of all threads together. The callers do the waiting.

    Attributes:
        rate: bytes a second; 0: no limit.
    """

    def __init__(
        self, rate: int, burst: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with an empty bucket.

        Args:
            rate: bytes a second; 0: no limit.
            burst: seconds whose unused bytes may be used later.
            clock: seconds.
        """
        self.rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> float:
        """Count `count` bytes, and return the seconds that the caller must wait.

        Less than 0: the seconds since the limit allowed these bytes.
        """
        if not self.rate:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst) + count / self.rate
            return self._free_at - now
