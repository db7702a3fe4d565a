"""The steps of a backup at which something is killed.

A few are drawn, one of each part of a backup. ``LUNR_CRASH_STEPS=N`` tries N;
``LUNR_CRASH_STEPS=all`` and a thorough run each of them. What a test did is printed when it fails;
``LUNR_CRASH_SEED`` repeats it.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lunr.live.qemu.qmp import LineReader
from tests.support.thorough import THOROUGH

TRIED = os.environ.get("LUNR_CRASH_STEPS") or ("all" if THOROUGH else "")
SEED = int(os.environ.get("LUNR_CRASH_SEED") or random.randrange(1 << 32))

#: For tests that go through steps.
patient = pytest.mark.timeout(4 * 3600 if TRIED else 300)

#: Seconds in which a call to the store is under way.
_AMID = 0.01


def drawn(first: int, end: int, count: int = 2) -> Iterator[int]:
    """The numbers of those to try, from `first` up to `end`; with "all" it is the caller who ends.

    A backup has not always as many steps: QEMU is asked until it is done. Unless told otherwise,
    `count` are tried.
    """
    print(f"LUNR_CRASH_SEED={SEED} LUNR_CRASH_STEPS={TRIED}")
    numbers: Iterator[int] = itertools.count(first)
    if TRIED != "all":
        draw, parts = random.Random(SEED), int(TRIED or count)
        bounds = [first + (end - first) * part // parts for part in range(parts + 1)]
        numbers = (draw.randrange(*two) for two in itertools.pairwise(bounds))
    for number in numbers:
        print(f"step {number}")
        yield number


class Steps:
    """Does `act` once, at the step number `at` of what this process does.

    There is one before and one after each message to QEMU, one before and one amid each call to
    the store that goes through `before`.

    Attributes:
        taken: how many there were.
        what: where it acted; "" when there were fewer.
    """

    def __init__(self, at: int, act: Callable[[], None], draw: random.Random) -> None:
        self.taken = 0
        self.what = ""
        self._at, self._act, self._draw = at, act, draw
        self._lock = threading.Lock()
        self._amid: list[threading.Timer] = []

    def before(self, call: str, name: str) -> None:
        """For :class:`tests.unit.backup.support.Faulty`."""
        if self._is_here(f"before {call} {name}"):
            self._act()
        if self._is_here(f"amid {call} {name}"):
            self._amid.append(threading.Timer(self._draw.uniform(0, _AMID), self._act))
            self._amid[0].start()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Count messages to QEMU, too."""
        send = LineReader.send

        def counted(lines: LineReader, *messages: dict[str, Any], **kwargs: Any) -> None:
            words = ", ".join(message["execute"] for message in messages)
            if self._is_here(f"before {words}"):
                self._act()
            send(lines, *messages, **kwargs)
            if self._is_here(f"after {words}"):
                self._act()

        patch.setattr(LineReader, "send", counted)

    def join(self) -> None:
        """Wait until it has acted, if it is to."""
        for timer in self._amid:
            timer.join()

    def _is_here(self, what: str) -> bool:
        with self._lock:
            here = self.taken == self._at
            self.taken += 1
        if here:
            self.what = what
            print(f"  {what}")
        return here
