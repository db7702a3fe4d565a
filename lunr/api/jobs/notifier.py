"""Wakes the claims of nodes that wait for a job."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiter:
    """One claim that waits for a job of some kinds."""

    node_id: str
    kinds: frozenset[str]
    woken: threading.Condition
    is_woken: bool = False


class JobNotifier:
    """Wakes a claim that waits for a job, as soon as one is committed in this process.

    One job wakes one claim: were all woken, those that come too late would
    only keep the process from answering.
    """

    def __init__(self) -> None:
        #: The process is about to end: nobody is to wait any more.
        self.closed = False
        self._lock = threading.Lock()
        self._notifications = 0
        self._waiting: list[_Waiter] = []

    def count(self) -> int:
        """The number of notifications so far: take it before looking for a job."""
        with self._lock:
            return self._notifications

    def notify(self, node_id: str | None, kind: str | None = None) -> None:
        """There is a job for the node (None: for any), of that kind (None: perhaps of several)."""
        with self._lock:
            self._notifications += 1
            fitting = [
                waiter
                for waiter in self._waiting
                if node_id in (None, waiter.node_id) and (kind is None or kind in waiter.kinds)
            ]
            for waiter in fitting if kind is None else fitting[:1]:
                self._waiting.remove(waiter)
                waiter.is_woken = True
                waiter.woken.notify()

    def wait(self, node_id: str, kinds: Collection[str], heard: int, seconds: float) -> bool:
        """Wait at most `seconds` for a notification of such a claim; not if one came since `heard`.

        Returns:
            Whether one came, or the notifier is closed.
        """
        with self._lock:
            if self._notifications != heard:
                return True
            waiter = _Waiter(node_id, frozenset(kinds), threading.Condition(self._lock))
            self._waiting.append(waiter)
            if not waiter.woken.wait_for(lambda: waiter.is_woken, seconds):
                self._waiting.remove(waiter)
            return waiter.is_woken or self.closed
