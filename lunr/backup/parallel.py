"""The same work on many items by a few threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from lunr.common.errors import Cancelled

T = TypeVar("T")

#: Seconds that an interrupted caller waits for threads that are at work; they are
#: daemons and change nothing after that.
_PATIENCE = 0.3


#: Threads besides those that wait for the store: each holds a chunk in memory, plain and encoded.
_MOST_AT_WORK = 4


def threads_for(requests: int) -> int:
    """How many threads keep `requests` requests to a store, and the processors, busy.

    While some wait for the store, others read, hash, check and write. For 1 request it is 1.
    """
    return 1 if requests == 1 else requests + min(os.cpu_count() or 1, _MOST_AT_WORK)


def each(
    items: Iterable[T],
    work: Callable[[T], None],
    threads: int,
    cancel: threading.Event | None = None,
) -> None:
    """Call `work` for each of `items`, in `threads` threads (1: in this one).

    Only one thread at a time advances `items`. The first error stops all threads and is
    raised here.

    Raises:
        Cancelled: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    if threads == 1:
        _in_turn(items, work, cancel)
        return
    source = iter(items)
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                work(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller
            failures.append(error)
            stop.set()

    workers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        _wait(workers, cancel)
    finally:
        stop.set()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]


def _in_turn(items: Iterable[T], work: Callable[[T], None], cancel: threading.Event) -> None:
    for item in items:
        if cancel.is_set():
            raise Cancelled
        work(item)


def _wait(workers: Iterable[threading.Thread], cancel: threading.Event) -> None:
    for worker in workers:
        while worker.is_alive():
            worker.join(0.1)
            if cancel.is_set():
                raise Cancelled
