"""Checks, several times a second, whether a backup must be given up."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from lunr.common import units
from lunr.common.errors import Cancelled, LunrError
from lunr.live import errors

#: Seconds between two checks.
_INTERVAL = 0.2

#: Returns why a backup must be given up; None: it goes on.
Check = Callable[[], LunrError | None]


class AbortChecks:
    """Sets `cancel` when one of its checks fails.

    Attributes:
        cancel: the engine's event.
    """

    def __init__(self, *checks: Check) -> None:
        self.cancel = threading.Event()
        self._checks = list(checks)
        self._error: LunrError | None = None
        self._over = threading.Event()

    def add(self, check: Check) -> None:
        """Add a check."""
        self._checks.append(check)

    def check_now(self) -> None:
        """Run the checks now.

        Raises:
            LunrError: the error of a check.
        """
        self._run_checks()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Run the checks repeatedly during the context.

        Raises:
            LunrError: the error of a check, in place of the engine's Cancelled.
        """
        self._run_checks()
        thread = threading.Thread(target=self._run_repeatedly, daemon=True, name="watch")
        thread.start()
        try:
            yield
        except Cancelled:
            raise self._error or Cancelled() from None
        finally:
            self._over.set()
            thread.join()

    def _run_checks(self) -> None:
        self._error = next(filter(None, (check() for check in self._checks)), None)
        if self._error is not None:
            self.cancel.set()

    def _run_repeatedly(self) -> None:
        while not (self.cancel.is_set() or self._over.wait(_INTERVAL)):
            self._run_checks()


def is_set(event: threading.Event) -> Check:
    """A check that fails when `event` is set."""
    return lambda: Cancelled() if event.is_set() else None


def space_used_above(files: Sequence[IO[bytes]], limit: int) -> Check:
    """A check that fails when sparse `files` take more than `limit` bytes in all; 0: no limit."""

    def check() -> LunrError | None:
        used = sum(os.fstat(file.fileno()).st_blocks for file in files) * 512
        return errors.ScratchLimit(limit=units.human(limit)) if 0 < limit < used else None

    return check


def space_left_below(files: Sequence[IO[bytes]], reserve: int | None) -> Check:
    """A check that fails when less than `reserve` bytes are free at `files`; None: `reserved`."""

    def check() -> LunrError | None:
        for file in files:
            room = os.fstatvfs(file.fileno())
            needed = reserved(room.f_blocks * room.f_frsize) if reserve is None else reserve
            if room.f_bavail * room.f_frsize < needed:
                return errors.ScratchReserve(reserve=units.human(needed))
        return None

    return check


def reserved(size: int) -> int:
    """The bytes that must stay free of a file system of `size` bytes: machines on it need them.

    A twentieth, and at least what a guest may write between two checks.
    """
    return max(size // 20, units.GIB)
