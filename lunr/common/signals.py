"""What to do when the process is told to end."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

TO_END = (signal.SIGTERM, signal.SIGINT)


def when_told(action: Callable[[], object], numbers: Iterable[signal.Signals] = TO_END) -> None:
    """Call `action`, in a thread of its own, each time a signal of `numbers` comes.

    Not in the handler: that runs in the main thread between any two steps of it, also while it
    holds the lock that `action` takes, and both would wait for ever. An `Event` has such a lock.
    """
    told: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put() may be interrupted by itself

    def wait() -> None:
        while told.get():
            try:
                action()
            except Exception:  # the next signal is to be heeded as well
                logger.exception("What the signal asked for could not be done.")

    threading.Thread(target=wait, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda number, _: told.put(number))
