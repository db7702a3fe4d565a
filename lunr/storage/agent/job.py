"""One job while a node works on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from lunr.common import errors, ids


class Stop(IntEnum):
    """Why a job is to end early; the larger number wins."""

    #: Somebody asked for it: end in order, soon.
    CANCELLED = 1
    #: The job is another's now, or the node stops: end at once, touch nothing more.
    LOST = 2


class ClaimedJob:
    """A claimed job (docs/api.md): what to do, how far it is, and whether to stop."""

    def __init__(self, claimed: Mapping[str, Any]) -> None:
        self.id = ids.check(claimed["id"], "job.id")
        self.kind = str(claimed["kind"])
        self.lease = str(claimed["lease"])
        self.lease_seconds = float(claimed["lease_seconds"])
        self.attempt = int(claimed["attempt"])
        self.payload: Mapping[str, Any] = claimed["payload"] or {}
        self._volume_id = claimed.get("volume_id")
        #: Percent.
        self.progress = 0
        #: Fields of its reports besides the progress.
        self.report_fields: Mapping[str, Any] = {}
        #: The API's answer to the last report: it takes precedence over the payload.
        self.answer: Mapping[str, Any] = {}
        self.stop_reason: Stop | None = None
        self._lock = threading.Lock()
        self._callback: Callable[[Stop], None] | None = None

    @property
    def about(self) -> str:
        """What the job is about, for people: a volume, or an account's repository."""
        return str(self._volume_id or self.payload.get("repository"))

    @property
    def volume_id(self) -> str:
        """The volume it is about, checked.

        Raises:
            errors.InvalidField: it is about none.
        """
        return ids.check(self._volume_id, "volume_id")

    def id_of(self, name: str) -> str:
        """The id in the payload under `name`, checked.

        Raises:
            errors.InvalidField: there is none, or it is not well-formed.
        """
        return ids.check(self.payload.get(name), f"payload.{name}")

    def size(self) -> int:
        """The payload's ``size_bytes``, checked.

        Raises:
            errors.InvalidField: it is not a positive number of bytes.
        """
        size = self.payload.get("size_bytes")
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise errors.InvalidField(field="payload.size_bytes", reason="a positive number")
        return size

    def advance(self, done: int, total: int) -> None:
        """Say how far it is: `done` of `total`."""
        if total > 0:
            self.progress = max(self.progress, min(100, done * 100 // total))

    def tick(self, done: int, total: int) -> None:
        """Say how far it is, from within the work itself.

        Raises:
            errors.Cancelled: it is to stop.
        """
        self.advance(done, total)
        self.heed(done, total)

    def heed(self, _done: int, _total: int) -> None:
        """As `tick`, for work that is only a part of it: its progress is not the job's.

        Raises:
            errors.Cancelled: it is to stop.
        """
        if self.stop_reason is not None:
            raise errors.Cancelled

    def stop(self, reason: Stop) -> None:
        """Have the work end early; any thread may call it, and more than once."""
        with self._lock:
            if self.stop_reason is not None and self.stop_reason >= reason:
                return
            self.stop_reason = reason
            callback = self._callback
        if callback is not None:
            callback(reason)

    @contextlib.contextmanager
    def stoppable(self, callback: Callable[[Stop], None]) -> Iterator[None]:
        """Have `callback(reason)` called, by another thread, if the job is to stop meanwhile.

        Raises:
            errors.Cancelled: it was to stop before it came this far.
        """
        with self._lock:
            if self.stop_reason is not None:
                raise errors.Cancelled
            self._callback = callback
        try:
            yield
        finally:
            with self._lock:
                self._callback = None
