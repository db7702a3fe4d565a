"""Waiting for the API to come back."""

from __future__ import annotations

import logging
import random
import threading

_log = logging.getLogger(__name__)

_FIRST = 0.2
_MOST = 10.0


class Backoff:
    """Waits a little longer each time, and logs when trouble begins and ends."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._pause = 0.0

    def wait(self, error: Exception) -> bool:
        """Wait because of `error`; returns False if the process is told to stop meanwhile."""
        if not self._pause:
            _log.warning("%s Trying again until it works.", error)
            self._pause = _FIRST
        # Spread, so that not all nodes come back to a restarted API in the same moment.
        told = self._stopping.wait(self._pause * random.uniform(0.5, 1.0))  # noqa: S311
        self._pause = min(self._pause * 2, _MOST)
        return not told

    def over(self) -> None:
        """Say that it worked."""
        if self._pause:
            _log.info("It works again.")
            self._pause = 0.0
