"""The fill behind a volume that is used: it brings what nobody has asked for yet.

``eager`` fetches as fast as it may; ``lazy`` does one chunk at a time, and only
while the volume is not used; ``never`` leaves it at what is read. In all of
them a reader that goes on from one chunk to the next is read ahead of, twice as
far each time, and the eager fill goes on from there. When the reader is half
through what was read ahead, there is more, so that it need not wait at the end.

It gives way: while somebody waits for the store, no chunk is begun, and while the
volume is used one thread at a time works, and rests after each chunk for three
times as long as that took.

What no further try would mend (the local storage lost what was synced; a defect)
ends the work until somebody orders it anew.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from enum import StrEnum

from lunr.backup.lazy_image.presence import ABSENT
from lunr.backup.lazy_image.restored_volume import RestoredVolume, SyncLost
from lunr.backup.read.backup_reader import Report
from lunr.common.errors import LunrError

logger = logging.getLogger(__name__)

_WINDOW = 8  # chunks read ahead at most
_STREAMS = 16  # readers remembered
#: Requests a second from which on a volume counts as used.
_USED = 20.0
_REST = 3.0  # times what a chunk took, where the volume is used
_QUIET = 1.0  # seconds without use before a lazy fill does a chunk
_PATIENCE = 3600.0
_PAUSE = 5.0  # seconds after an error, and before damaged chunks are looked at again
_CHECKPOINT = 10.0
_MEND = 2.0  # seconds between two looks whether what was damaged was written
_END = 1.0  # seconds that chunks under way have to end
_REPORTS_EVERY = 0.5
_SMOOTH = 5.0  # seconds over which the rate is averaged


class Mode(StrEnum):
    """How much is fetched that nobody asked for."""

    EAGER = "eager"
    LAZY = "lazy"
    NEVER = "never"


class BackgroundFill:
    """Fills `volume` with threads of its own, until it is complete or :meth:`stop` is called."""

    def __init__(
        self,
        volume: RestoredVolume,
        report: Report,
        mode: Mode = Mode.EAGER,
        concurrency: int = 4,
        limit: int = 0,
    ) -> None:
        """Prepare.

        Args:
            volume: what to fill.
            report: is told ``progress`` (done, total, rate in bytes a second, remaining in
                seconds or null, mode, damaged and missing: chunks), ``trouble`` (reason, or
                null when it is over), ``given_up`` (the same: it needs an order to go on)
                and, in the end, ``filled``.
            mode: how eagerly.
            concurrency: chunks fetched at once.
            limit: bytes a second; 0: as many as come.
        """
        self._volume = volume
        self._report = report
        self._mode = mode
        self._limit = limit
        self._shape = volume.presence.shape
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._cursor = 0
        self._ahead: deque[int] = deque(maxlen=4 * _WINDOW)
        #: For each reader: the chunk that it will miss next if it goes on, and how far it was
        #: read ahead of.
        self._streams: dict[int, int] = {}
        #: Chunks in the middle of what was read ahead, and the reader's entry in `_streams`.
        self._middles: dict[int, int] = {}
        self._working: set[int] = set()
        self._damaged: set[int] = set()
        self._free_at = 0.0
        self._orders = 0
        self._trouble: str | None = None
        self._given_up: str | None = None
        self._usage = _Usage(volume)
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fill-{number}", daemon=True)
            for number in range(max(1, concurrency))
        ]
        volume.missed, volume.passed = self._missed, self._passed

    @property
    def mode(self) -> Mode:
        """How eagerly it fills now."""
        return self._mode

    def set(self, mode: Mode | None = None, limit: int | None = None) -> None:
        """Go on otherwise. Damaged chunks are tried again."""
        with self._changed:
            self._mode = self._mode if mode is None else mode
            self._limit = self._limit if limit is None else limit
            self._free_at = 0.0
            self._orders += 1
            self._damaged.clear()
            given_up, self._given_up = self._given_up, None
            if given_up is not None:
                self._report("given_up", reason=None)
            self._changed.notify_all()

    def stop(self) -> None:
        """End, soon. A chunk whose object does not come is left behind."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> bool:
        """Fill, telling of it; whether the volume is complete (else it was stopped).

        A complete volume is synced.
        """
        for thread in self._threads:
            thread.start()
        rate = _Rate(self._volume.presence.present)
        checkpoint = time.monotonic() + _CHECKPOINT
        mend = time.monotonic() + _MEND
        while not self._stopped and not self._volume.complete:
            self._progress(rate)
            with self._changed:
                self._changed.wait(_REPORTS_EVERY)
            if time.monotonic() > mend:
                self._volume.mend()
                mend = time.monotonic() + _MEND
            if time.monotonic() > checkpoint:
                self._sync()
                checkpoint = time.monotonic() + _CHECKPOINT
        while not self._stopped and not self._sync():
            self._pause()
        is_complete = not self._stopped
        self.stop()
        deadline = time.monotonic() + _END
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if is_complete:
            self._volume.mend()
            self._progress(rate)
            self._report("filled")
        return is_complete

    def _sync(self) -> bool:
        if self._given_up is not None:
            return False
        try:
            self._volume.sync()
        except SyncLost as error:
            self._give_up(
                f"The node's storage has perhaps lost what was written: {error.strerror}."
            )
            return False
        except OSError as error:
            self._tell(f"The volume can't be synced: {error}.")
            return False
        return True

    def _progress(self, rate: _Rate) -> None:
        present, chunk = self._volume.presence.present, self._shape.chunk
        speed = rate.of(present) * chunk
        left = min((self._shape.chunks - present) * chunk, self._shape.size)
        self._report(
            "progress",
            done=self._shape.size - left,
            total=self._shape.size,
            rate=round(speed),
            remaining=round(left / speed) if speed else None,
            mode=str(self._mode),
            damaged=len(self._damaged),
            missing=self._shape.chunks - present,
        )

    # --- what to do next -------------------------------------------------------------

    def _missed(self, chunk: int) -> None:
        """Somebody waits for `chunk`."""
        with self._changed:
            if chunk in self._middles:  # it is being fetched just now
                self._go_on(chunk)
                return
            window = min(2 * self._streams.pop(chunk, 0), _WINDOW) or 1
            # Whoever missed the chunk before this one goes on.
            self._read_ahead(chunk + 1, window, window if window > 1 else 0)
            self._cursor = chunk
            self._changed.notify_all()

    def _passed(self, chunk: int) -> None:
        """Somebody reads `chunk`, in the middle of what was read ahead."""
        with self._changed:
            self._go_on(chunk)

    def _go_on(self, chunk: int) -> None:
        following = self._middles.pop(chunk, 0)
        window = min(2 * self._streams.pop(following, 0), _WINDOW)
        if window:
            self._read_ahead(following, window, window)
            self._changed.notify_all()
        self._volume.marks = set(self._middles)

    def _read_ahead(self, chunk: int, window: int, count: int) -> None:
        """Fetch `count` chunks from `chunk` on, for a reader of whom `window` is known."""
        following = min(chunk + count, self._shape.chunks)
        self._ahead.extend(range(chunk, following))
        self._streams[following] = window
        if count:
            self._middles[chunk + count // 2] = following
        while len(self._streams) > _STREAMS:
            del self._streams[next(iter(self._streams))]
        while len(self._middles) > _STREAMS:
            del self._middles[next(iter(self._middles))]
        self._volume.marks = set(self._middles)

    def _next(self, number: int) -> tuple[int, bool] | None:
        """A chunk for thread `number` to fill, and whether a reader will want it.

        The lock is held.
        """
        presence = self._volume.presence
        while self._ahead:
            chunk = self._ahead.popleft()
            is_absent = presence.absent(chunk, 0, self._shape.units(chunk))
            if is_absent and chunk not in self._working:
                return chunk, True
        if self._mode is Mode.NEVER or self._given_up is not None or self._must_wait(number):
            return None
        chunk_ = self._search(ABSENT)
        return None if chunk_ is None else (chunk_, False)

    def _search(self, state: int) -> int | None:
        """The next chunk that is wholly absent, or, when there is none, in part."""
        presence = self._volume.presence
        for start in (self._cursor, 0):
            chunk = start
            while True:
                found = presence.find(state, chunk)
                if found is None:
                    break
                if found not in self._working and found not in self._damaged:
                    self._cursor = found + 1
                    return found
                chunk = found + 1
        return self._search(state + 1) if state == ABSENT else None

    # --- threads -----------------------------------------------------------------------

    def _work(self, number: int) -> None:
        while True:
            with self._changed:
                found = self._next(number)
                if self._stopped or self._volume.complete:
                    self._changed.notify_all()
                    return
                if found is None:
                    self._changed.wait(0.02 if self._volume.waiting else 0.2)
                    continue
                chunk, is_wanted = found
                self._working.add(chunk)
                orders = self._orders
            started = time.monotonic()
            try:
                fetched = self._fill(chunk, is_wanted, orders)
            finally:
                with self._lock:
                    self._working.discard(chunk)
            if fetched:
                self._rest(fetched, 0.0 if is_wanted else time.monotonic() - started)

    def _must_wait(self, number: int) -> bool:
        """Whether thread `number` should leave the store to others now."""
        if self._volume.waiting:
            return True
        if self._mode is Mode.LAZY:
            return number > 0 or self._usage.quiet() < _QUIET
        return number > 0 and self._usage.rate() > _USED

    def _fill(self, chunk: int, is_wanted: bool, orders: int) -> int:
        """Fill `chunk`, and return how many bytes were fetched for it.

        What fails says nothing of an order that came after `orders`: that one asks to try again.
        """
        fetched: int | None = 0
        try:
            fetched = self._volume.fill(chunk, time.monotonic() + _PATIENCE, is_wanted)
        except TimeoutError:
            return 0  # the source tells of it; the chunk is found again
        except LunrError as error:
            self._tell(str(error))
            self._pause()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            where = "There is no room for" if full else "Writing failed for"
            self._tell(f"{where} what is fetched: {error.strerror}.")
            self._pause()
        except Exception as error:  # a defect: the others must not go on as if nothing were
            logger.exception("Chunk %d can't be filled for a reason nobody thought of.", chunk)
            self._give_up(f"{type(error).__name__}: {error}", orders)
            return 0
        else:
            self._tell(None)
        if fetched is None:
            with self._lock:
                if self._orders == orders:
                    self._damaged.add(chunk)
        return fetched or 0

    def _pause(self) -> None:
        """Wait for a while; after it was given up, for an order."""
        with self._changed:
            if not self._stopped:
                self._changed.wait(None if self._given_up else _PAUSE)

    def _give_up(self, reason: str, orders: int | None = None) -> None:
        """Stand still until the next order, unless one has come since `orders`."""
        with self._changed:
            if orders not in (None, self._orders):
                return
            self._given_up = reason
        logger.error("%s", reason)
        self._report("given_up", reason=reason)

    def _rest(self, fetched: int, took: float) -> None:
        """Keep to the limit, and leave most of the time to a volume that is used."""
        pause = took * _REST if self._usage.rate() > _USED else 0.0
        with self._changed:
            orders, now = self._orders, time.monotonic()
            if self._limit:
                self._free_at = max(self._free_at, now) + fetched / self._limit
                pause = max(pause, self._free_at - now)
            until = now + pause
            while not self._stopped and orders == self._orders:
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _tell(self, reason: str | None) -> None:
        with self._lock:
            if reason == self._trouble:
                return
            self._trouble = reason
        if reason is not None:
            logger.warning("%s", reason)
        self._report("trouble", reason=reason)


class _Usage:
    """How much a volume is used by others."""

    def __init__(self, volume: RestoredVolume) -> None:
        self._volume = volume
        self._seen = volume.requests
        self._when = self._last = time.monotonic()
        self._rate = 0.0

    def rate(self) -> float:
        """Requests a second, of late."""
        now = time.monotonic()
        if now - self._when >= 0.05:
            requests = self._volume.requests
            if requests != self._seen:
                self._last = now
            self._rate = (requests - self._seen) / (now - self._when)
            self._seen, self._when = requests, now
        return self._rate

    def quiet(self) -> float:
        """Seconds since the last request."""
        self.rate()
        return time.monotonic() - self._last


class _Rate:
    """Chunks a second, averaged over some seconds."""

    def __init__(self, present: int) -> None:
        self._seen = present
        self._when = self._started = time.monotonic()
        self._rate = 0.0

    def of(self, present: int) -> float:
        """The rate, now that `present` chunks are there."""
        now = time.monotonic()
        passed = now - self._when
        if passed > 0:
            weight = min(1.0, passed / min(_SMOOTH, now - self._started))
            self._rate += weight * ((present - self._seen) / passed - self._rate)
            self._seen, self._when = present, now
        return self._rate
