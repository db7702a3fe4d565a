"""Actions of a process on signals."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

TO_END = (signal.SIGTERM, signal.SIGINT)


def on_signal(action: Callable[[], object], numbers: Iterable[signal.Signals] = TO_END) -> None:
    """Call `action`, in a thread of its own, each time a signal of `numbers` comes.

    A signal handler can't call it: a handler interrupts the main thread anywhere, also while
    that thread holds the lock that `action` takes, such as the lock of an `Event`.
    """
    received: queue.SimpleQueue[int] = queue.SimpleQueue()  # put() may interrupt itself

    def run_actions() -> None:
        while received.get():
            try:
                action()
            except Exception:  # the next signal calls the action again
                logger.exception("The action of a signal failed.")

    threading.Thread(target=run_actions, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda number, _: received.put(number))
