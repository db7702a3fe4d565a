"""The fill of a lazy restore: it fetches the chunks that no request has fetched yet.

``eager`` fetches as fast as it may; ``lazy`` fetches one chunk at a time, and only
while the volume is idle; ``never`` fetches only for readers. In every mode the fill reads
ahead of a reader that goes on from one chunk to the next, twice as far each time, and the
eager fill goes on from there. It reads further ahead when the reader is half through, so that
the reader need not wait at the end.

The fill yields to requests: while one waits for the store, no chunk is begun. While the
volume is used, one thread works at a time, and rests after each chunk for three times as
long as the chunk took.

After an error that a retry can't mend (the local storage lost synced data; a defect) the fill
stops until its settings are sent again.
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
from lunr.common.rate import TokenBucket

logger = logging.getLogger(__name__)

_WINDOW = 8  # chunks read ahead at most
_STREAMS = 16  # readers remembered
#: Requests a second from which on a volume counts as used.
_USED = 20.0
_REST = 3.0  # times what a chunk took, where the volume is used
_QUIET = 1.0  # seconds without use before a lazy fill does a chunk
_PATIENCE = 3600.0
_PAUSE = 5.0  # seconds after an error, and before damaged chunks are tried again
_CHECKPOINT = 10.0
_CLEAR_DAMAGE = 2.0  # seconds between two checks whether damaged ranges were written
_END = 1.0  # seconds that chunks under way have to end
_REPORTS_EVERY = 0.5
_SMOOTH = 5.0  # seconds over which the rate is averaged


class Mode(StrEnum):
    """How eagerly the fill fetches."""

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
        """Prepare the fill of `volume`; :meth:`run` does it.

        Args:
            volume: the volume to fill.
            report: called with ``progress`` (done, total, rate in bytes a second, remaining in
                seconds or null, mode, damaged and missing: chunks), ``trouble`` (reason, or
                null when it is over), ``given_up`` (the same: it goes on with new settings)
                and, at the end, ``filled``.
            mode: how eagerly it fetches.
            concurrency: chunks fetched at once.
            limit: bytes a second; 0: no limit.
        """
        self._volume = volume
        self._report = report
        self._mode = mode
        self._bucket = TokenBucket(limit)
        self._shape = volume.presence.shape
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._cursor = 0
        self._ahead: deque[int] = deque(maxlen=4 * _WINDOW)
        #: For each reader: the chunk that it will miss next if it goes on, and how many chunks
        #: were read ahead for it.
        self._streams: dict[int, int] = {}
        #: Chunks in the middle of those read ahead, and the reader's entry in `_streams`.
        self._middles: dict[int, int] = {}
        self._working: set[int] = set()
        self._damaged: set[int] = set()
        #: How often the settings were sent.
        self._generation = 0
        self._trouble: str | None = None
        self._given_up: str | None = None
        self._usage = _Usage(volume)
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"fill-{number}", daemon=True)
            for number in range(max(1, concurrency))
        ]
        volume.on_miss, volume.on_progress = self._on_miss, self._on_progress

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self._mode

    def apply_settings(self, mode: Mode | None = None, limit: int | None = None) -> None:
        """Change the settings. The fill tries damaged chunks again."""
        with self._changed:
            self._mode = self._mode if mode is None else mode
            self._bucket = TokenBucket(self._bucket.rate if limit is None else limit)
            self._generation += 1
            self._damaged.clear()
            given_up, self._given_up = self._given_up, None
            if given_up is not None:
                self._report("given_up", reason=None)
            self._changed.notify_all()

    def stop(self) -> None:
        """End soon. Threads that wait for an object are abandoned."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> bool:
        """Fill the volume, and return whether it is complete and synced; else it was stopped."""
        for thread in self._threads:
            thread.start()
        rate = _Rate(self._volume.presence.present)
        checkpoint = time.monotonic() + _CHECKPOINT
        next_check = time.monotonic() + _CLEAR_DAMAGE
        while not self._stopped and not self._volume.complete:
            self._progress(rate)
            with self._changed:
                self._changed.wait(_REPORTS_EVERY)
            if time.monotonic() > next_check:
                self._volume.clear_repaired_damage()
                next_check = time.monotonic() + _CLEAR_DAMAGE
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
            self._volume.clear_repaired_damage()
            self._progress(rate)
            self._report("filled")
        return is_complete

    def _sync(self) -> bool:
        if self._given_up is not None:
            return False
        try:
            self._volume.sync()
        except SyncLost as error:
            self._give_up(f"The node's storage has perhaps lost written data: {error.strerror}.")
            return False
        except OSError as error:
            self._report_trouble(f"The volume can't be synced: {error}.")
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

    def _on_miss(self, chunk: int) -> None:
        """Read ahead for a reader that waits for `chunk`."""
        with self._changed:
            if chunk in self._middles:  # it is being fetched just now
                self._extend(chunk)
                return
            window = min(2 * self._streams.pop(chunk, 0), _WINDOW) or 1
            # The reader that missed the chunk before this one goes on.
            self._read_ahead(chunk + 1, window, window if window > 1 else 0)
            self._cursor = chunk
            self._changed.notify_all()

    def _on_progress(self, chunk: int) -> None:
        """Read further ahead for a reader of `chunk`, the middle of those read ahead."""
        with self._changed:
            self._extend(chunk)

    def _extend(self, chunk: int) -> None:
        following = self._middles.pop(chunk, 0)
        window = min(2 * self._streams.pop(following, 0), _WINDOW)
        if window:
            self._read_ahead(following, window, window)
            self._changed.notify_all()
        self._volume.marks = set(self._middles)

    def _read_ahead(self, chunk: int, window: int, count: int) -> None:
        """Queue `count` chunks from `chunk` on, for a reader with the read-ahead `window`."""
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
        """The next chunk for thread `number`, and whether a reader is expected to read it.

        The caller holds the lock.
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
        """The next chunk that is ABSENT, or else PARTIAL."""
        presence = self._volume.presence
        for start in (self._cursor, 0):
            chunk = start
            while True:
                absent_chunk = presence.find(state, chunk)
                if absent_chunk is None:
                    break
                if absent_chunk not in self._working and absent_chunk not in self._damaged:
                    self._cursor = absent_chunk + 1
                    return absent_chunk
                chunk = absent_chunk + 1
        return self._search(state + 1) if state == ABSENT else None

    # --- threads -----------------------------------------------------------------------

    def _work(self, number: int) -> None:
        while True:
            with self._changed:
                work = self._next(number)
                if self._stopped or self._volume.complete:
                    self._changed.notify_all()
                    return
                if work is None:
                    self._changed.wait(0.02 if self._volume.waiting else 0.2)
                    continue
                chunk, is_wanted = work
                self._working.add(chunk)
                generation = self._generation
            started = time.monotonic()
            try:
                fetched = self._fill(chunk, is_wanted, generation)
            finally:
                with self._lock:
                    self._working.discard(chunk)
            if fetched:
                self._rest(fetched, 0.0 if is_wanted else time.monotonic() - started)

    def _must_wait(self, number: int) -> bool:
        """Whether thread `number` must yield to requests now."""
        if self._volume.waiting:
            return True
        if self._mode is Mode.LAZY:
            return number > 0 or self._usage.quiet() < _QUIET
        return number > 0 and self._usage.rate() > _USED

    def _fill(self, chunk: int, is_wanted: bool, generation: int) -> int:
        """Fill `chunk`, and return how many bytes were fetched for it.

        A failure is not noted if the settings were sent again since `generation`: these ask for
        another attempt.
        """
        fetched: int | None = 0
        try:
            fetched = self._volume.fill(chunk, time.monotonic() + _PATIENCE, is_wanted)
        except TimeoutError:
            return 0  # the source reports it; the chunk will be tried again
        except LunrError as error:
            self._report_trouble(str(error))
            self._pause()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            where = "There is no room for" if full else "Writing failed for"
            self._report_trouble(f"{where} fetched data: {error.strerror}.")
            self._pause()
        except Exception as error:  # a defect: the other threads must not go on
            logger.exception("Chunk %d can't be filled because of an unexpected error.", chunk)
            self._give_up(f"{type(error).__name__}: {error}", generation)
            return 0
        else:
            self._report_trouble(None)
        if fetched is None:
            with self._lock:
                if self._generation == generation:
                    self._damaged.add(chunk)
        return fetched or 0

    def _pause(self) -> None:
        """Wait for a while; when the fill has given up, until the settings are sent again."""
        with self._changed:
            if not self._stopped:
                self._changed.wait(None if self._given_up else _PAUSE)

    def _give_up(self, reason: str, generation: int | None = None) -> None:
        """Stop until the settings are sent again, unless they were since `generation`."""
        with self._changed:
            if generation not in (None, self._generation):
                return
            self._given_up = reason
        logger.error("%s", reason)
        self._report("given_up", reason=reason)

    def _rest(self, fetched: int, took: float) -> None:
        """Pause to keep to the limit, and to yield to the requests of a volume that is used."""
        pause = took * _REST if self._usage.rate() > _USED else 0.0
        with self._changed:
            generation, now = self._generation, time.monotonic()
            until = now + max(pause, self._bucket.take(fetched))
            while not self._stopped and generation == self._generation:
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _report_trouble(self, reason: str | None) -> None:
        with self._lock:
            if reason == self._trouble:
                return
            self._trouble = reason
        if reason is not None:
            logger.warning("%s", reason)
        self._report("trouble", reason=reason)


class _Usage:
    """The rate of requests to a volume."""

    def __init__(self, volume: RestoredVolume) -> None:
        self._volume = volume
        self._seen = volume.requests
        self._when = self._last = time.monotonic()
        self._rate = 0.0

    def rate(self) -> float:
        """Requests a second, recently."""
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
        """The rate, now that `present` chunks are local."""
        now = time.monotonic()
        passed = now - self._when
        if passed > 0:
            weight = min(1.0, passed / min(_SMOOTH, now - self._started))
            self._rate += weight * ((present - self._seen) / passed - self._rate)
            self._seen, self._when = present, now
        return self._rate
