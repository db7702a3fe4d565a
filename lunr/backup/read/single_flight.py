"""What several threads want at the same time is done by one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[K, Future[V]] = {}

    def do(self, key: K, work: Callable[[], V], until: float) -> V:
        """Return ``work()``, or what it returns or raises for another thread with this `key`.

        Raises:
            TimeoutError: the other one was not ready at `until` (of time.monotonic); if it ran out
                of time itself before that, the work is done here.
        """
        while True:
            with self._lock:
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = Future()
                    break
            try:
                return running.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                # The other one may have had less patience.
                if not running.done() or time.monotonic() >= until:
                    raise
        try:
            result = work()
        except BaseException as error:
            self._end(key)
            mine.set_exception(error)
            raise
        self._end(key)
        mine.set_result(result)
        return result

    def __contains__(self, key: K) -> bool:
        """Whether somebody does it now."""
        return key in self._running

    def _end(self, key: K) -> None:
        with self._lock:
            del self._running[key]
