"""Going on when something fails: trying again, after a while."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from lunr.common import errors

_log = logging.getLogger(__name__)

#: Not the one of the process: whoever seeds that expects to be alone with it.
_random = random.Random()  # noqa: S311 - no secret

_FIRST = 0.2
_MOST = 10.0


class Backoff:
    """Waits a little longer each time, and logs when trouble begins and ends."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._pause = 0.0

    def attempt(self, work: Callable[[], object]) -> None:
        """Do `work`; if it fails, wait. For threads that are to work until the process ends."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - of a defect too: who would miss the thread?
            self.wait(error)
        else:
            self.over()

    def wait(self, error: Exception) -> bool:
        """Wait because of `error`; returns False if the process is told to stop meanwhile."""
        if not self._pause:
            is_defect = not isinstance(error, (errors.LunrError, OSError))
            trace = error if is_defect else None
            said = f"{type(error).__name__}: {error}." if is_defect else str(error)
            _log.warning("%s Trying again until it works.", said, exc_info=trace)
            self._pause = _FIRST
        # Spread, so that not all nodes come back to a restarted API in the same moment.
        told = self._stopping.wait(self._pause * _random.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, _MOST)
        return not told

    def over(self) -> None:
        """Say that it worked."""
        if self._pause:
            _log.info("It works again.")
            self._pause = 0.0
