"""Work that several threads need at the same time, done once by one of them."""

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

    def run(self, key: K, work: Callable[[], V], until: float) -> V:
        """Return ``work()``, or its outcome in another thread that runs it for this `key`.

        Raises:
            TimeoutError: the other thread was not ready at `until` (of time.monotonic). If it
                timed out itself before that, this thread does the work.
        """
        while True:
            with self._lock:
                running = self._running.get(key)
                if running is None:
                    own = self._running[key] = Future()
                    break
            try:
                return running.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                # The other thread may have had an earlier deadline.
                if not running.done() or time.monotonic() >= until:
                    raise
        try:
            result = work()
        except BaseException as error:
            self._remove(key)
            own.set_exception(error)
            raise
        self._remove(key)
        own.set_result(result)
        return result

    def __contains__(self, key: K) -> bool:
        """Whether a thread does the work of `key` now."""
        return key in self._running

    def _remove(self, key: K) -> None:
        with self._lock:
            del self._running[key]
