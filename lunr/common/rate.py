"""Limits of bytes a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets so many bytes a second pass, for all threads together. It does not wait itself.

    Attributes:
        rate: bytes a second; 0: as many as come.
    """

    def __init__(
        self, rate: int, burst: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin now, with an empty bucket.

        Args:
            rate: bytes a second; 0: as many as come.
            burst: seconds of which what was not used may be made up for.
            clock: seconds.
        """
        self.rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> float:
        """Count `count` bytes, and return the seconds that their mover must wait.

        Less than 0: for so long nothing was due.
        """
        if not self.rate:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst) + count / self.rate
            return self._free_at - now
