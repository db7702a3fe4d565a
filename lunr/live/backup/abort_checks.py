"""Looking, several times a second, whether a backup is to be given up."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from lunr.common import units
from lunr.common.errors import Cancelled, LunrError
from lunr.live import errors

#: Seconds between two looks.
_LOOK = 0.2

#: Why a backup is to be given up; None: it is not.
Check = Callable[[], LunrError | None]


class AbortChecks:
    """Sets `cancel` when one of its checks says so.

    Attributes:
        cancel: for the engine.
    """

    def __init__(self, *checks: Check) -> None:
        self.cancel = threading.Event()
        self._checks = list(checks)
        self._error: LunrError | None = None
        self._over = threading.Event()

    def add(self, check: Check) -> None:
        """One more thing to look at."""
        self._checks.append(check)

    def look(self) -> None:
        """Look now.

        Raises:
            LunrError: what a check says.
        """
        self._look()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look as long as this lasts.

        Raises:
            LunrError: what a check said, in place of the engine's Cancelled.
        """
        self._look()
        thread = threading.Thread(target=self._go_on_looking, daemon=True, name="watch")
        thread.start()
        try:
            yield
        except Cancelled:
            raise self._error or Cancelled() from None
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        self._error = next(filter(None, (check() for check in self._checks)), None)
        if self._error is not None:
            self.cancel.set()

    def _go_on_looking(self) -> None:
        while not (self.cancel.is_set() or self._over.wait(_LOOK)):
            self._look()


def is_set(event: threading.Event) -> Check:
    """Whether somebody set `event`."""
    return lambda: Cancelled() if event.is_set() else None


def uses_more(files: Sequence[IO[bytes]], limit: int) -> Check:
    """Whether sparse `files` take more than `limit` bytes in all; 0: no limit."""

    def check() -> LunrError | None:
        used = sum(os.fstat(file.fileno()).st_blocks for file in files) * 512
        return errors.ScratchLimit(limit=units.human(limit)) if 0 < limit < used else None

    return check


def leaves_less(files: Sequence[IO[bytes]], reserve: int | None) -> Check:
    """Whether less than `reserve` bytes are free where `files` are; None: :func:`reserved`."""

    def check() -> LunrError | None:
        for file in files:
            found = os.fstatvfs(file.fileno())
            wanted = reserved(found.f_blocks * found.f_frsize) if reserve is None else reserve
            if found.f_bavail * found.f_frsize < wanted:
                return errors.ScratchReserve(reserve=units.human(wanted))
        return None

    return check


def reserved(size: int) -> int:
    """What should stay free of a file system of `size` bytes: machines on it stop when it is full.

    A twentieth, and at least what a guest may write between two looks.
    """
    return max(size // 20, units.GIB)
