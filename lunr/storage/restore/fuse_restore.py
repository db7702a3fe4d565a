"""One volume that fills: its places on the node, and the process that serves it, kept alive."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image import mount
from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import concurrency, errors, files, ids
from lunr.common.extents import Extent
from lunr.storage.agent.backoff import Backoff
from lunr.storage.engine import Engine
from lunr.storage.restore.process import RestoreProcess, adopt, reach, take_lock
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import RestoreStatus

_log = logging.getLogger(__name__)

#: Seconds that a process serves before its death counts as the first one.
_HEALTHY = 30.0
#: Seconds for the first mount. The store is asked for the backup's root then.
_MOUNT_TIMEOUT = 60.0
#: Seconds until a process that was told to end is killed.
_END_TIMEOUT = 15.0
#: Seconds for an answer. What is being written is waited for.
_ANSWER_TIMEOUT = 30.0
_FILE = "volume"
#: A file in the run folder: the process is another than the one that exports were made of.
_STALE = "stale"


class FillingDied(errors.LunrError):
    """The process that serves volume {id} ended: {reason}"""

    code = "filling_died"
    retry = True


class FillingBusy(errors.LunrError):
    """Volume {id}, which is being restored, does not stand still: {reason}"""

    code = "filling_busy"
    retry = True


class FuseRestore:
    """A volume while it is filled, and until nobody uses the way past the process any more.

    Attributes:
        task: what it is filled from.
        news: how far it is, and what is wrong with it.
        is_told: whether the API knows that it is full.
    """

    #: The file in `state` that the task is kept in.
    TASK = "task"

    def __init__(
        self,
        volume_id: str,
        state: Path,
        run: Path,
        target: Callable[[], Path],
        engine: Engine,
        remounted: Callable[[str], None],
    ) -> None:
        """Nothing is done yet.

        Args:
            volume_id: the volume.
            state: its folder that survives a reboot.
            run: its folder that is good for this boot.
            target: tells where the pool has the volume.
            engine: how the store is reached.
            remounted: called with the id when the process was started again: whoever
                has the file open must open it anew.
        """
        self.volume_id = volume_id
        self._state = state
        self._run = run
        self._target = target
        self._engine = engine
        self._remounted = remounted
        self.task: RestoreSpec | None = None
        self.news = RestoreStatus()
        self.is_told = False
        self._starts = 0
        #: The process and its requests when they were counted last, and when they had changed.
        self._requests: tuple[RestoreProcess | None, int] = (None, 0)
        self._used_at = 0.0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._worker: RestoreProcess | None = None
        #: A process that was there before goes on as it was told, until somebody tells it more.
        self._orders: tuple[str, ...] = ()
        self._mounted = False
        self._filled = False
        self._failed: errors.LunrError | None = None
        self._answer: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None
        self._still = threading.Lock()
        #: Held by who ends it: the watch of the exports settles what a job removes or the agent
        #: closes.
        self._ending = threading.Lock()
        self._removed = False

    # --- what there is ---------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file that serves it."""
        return self._mountpoint / _FILE

    @property
    def is_filled(self) -> bool:
        """Whether all is there."""
        return self._filled

    @property
    def is_settled(self) -> bool:
        """Whether it is an ordinary volume: full, and served by the pool alone."""
        return self.task is not None and self.task.is_filled

    @property
    def stale(self) -> int | None:
        """What :meth:`reopened` is to be told, if exports must open the file anew; None: not so.

        It is kept in a file: an agent may be killed between the start of a process and that.
        """
        with self._changed:
            return self._starts if self._mounted and (self._run / _STALE).exists() else None

    def reopened(self, stale: int) -> None:
        """Exports have the file open that was served when they were told `stale`."""
        with self._changed:
            if stale == self._starts:  # else a process was started meanwhile
                (self._run / _STALE).unlink(missing_ok=True)

    def _starting(self) -> None:
        with self._changed:
            self._starts += 1
            (self._run / _STALE).touch()

    @property
    def trouble(self) -> str | None:
        """Why not all of it can be had now; None: it can, as far as is known."""
        with self._changed:
            if self._failed is not None and not (self._mounted or self.is_settled):
                return str(self._failed)
            return self.news.trouble

    @property
    def _mountpoint(self) -> Path:
        return self._run / "mnt"

    @property
    def _task_file(self) -> Path:
        return self._state / self.TASK

    @property
    def _gaps_file(self) -> Path:
        return self._state / "gaps"

    def shown(self) -> dict[str, Any]:
        """How far it is, for operators."""
        return {
            "backup_id": None if self.task is None else self.task.backup_id,
            "path": str(self.path),
            **asdict(self.news.progress),
            "trouble": self.news.trouble,
            "damage": self.news.damaged,
        }

    # --- its life --------------------------------------------------------------------

    def load(self) -> bool:
        """Read what is kept of it; whether there was something."""
        try:
            self.task = RestoreSpec.read(self._task_file)
        except FileNotFoundError:
            return False
        self._filled = self.task.is_filled
        return True

    def keep(self, task: RestoreSpec, gaps: MissingExtents | None = None) -> None:
        """Begin, with a target that is zeros, or that will lack just these `gaps`."""
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if gaps is not None:
            concurrency.blocking(gaps.write, self._gaps_file)
        task.write(self._task_file)
        files.fsync(self._state.parent)
        self.task = task

    def start(self) -> None:
        """Have it served from now on, whatever becomes of the process."""
        if self._thread is not None or self.is_settled:
            return
        with contextlib.suppress(OSError):  # what is mounted there is dead
            self._mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread = threading.Thread(
            target=self._serve, name=f"filling-{self.volume_id}", daemon=True
        )
        self._thread.start()

    def wait_mounted(self, heed: Callable[[], None]) -> None:
        """Return when it can be used; `heed` is called meanwhile and may raise.

        Raises:
            FillingDied: it can't, and what it can't for will perhaps pass.
            errors.RemoteError: the process said why.
        """
        deadline = time.monotonic() + _MOUNT_TIMEOUT
        with self._changed:
            while not self._mounted:
                if self._failed is not None:
                    raise self._failed
                if time.monotonic() > deadline:
                    raise FillingDied(id=self.volume_id, reason="it did not begin in time")
                heed()
                self._changed.wait(0.5)

    def fill(self, mode: str, limit: int) -> None:
        """Fill so from now on (eager, lazy, never; bytes a second, 0: no limit).

        Damaged parts are tried again.
        """
        with self._changed:
            self._orders = (f"fill {mode}", f"limit {limit}")
            self.news.given_up = None
            self.news.progress = replace(self.news.progress, damaged=0)
            worker = self._worker if self._mounted else None
        if worker is not None:
            self._give_orders(worker)

    def wait(self, seconds: float) -> None:
        """Wait for news."""
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        """End the waits."""
        with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def still(self) -> Iterator[list[Extent]]:
        """The extents that are absent, in order; they stay so inside: take a snapshot.

        One at a time; others wait.

        Raises:
            FillingBusy: they did not stay so, or nobody says which they are.
        """
        with self._still:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._mounted or self._stopping.is_set(), _ANSWER_TIMEOUT
                )
                worker = self._worker if self._mounted else None
            if worker is None:
                raise FillingBusy(id=self.volume_id, reason="its process is being started again")
            found = self._ask(worker, "still", "unfetched")
            try:
                yield [Extent(offset, offset + length) for offset, length in found["extents"]]
            finally:
                gone = self._ask(worker, "go", "gone")
            if not gone["in_time"]:
                raise FillingBusy(id=self.volume_id, reason="the snapshot took too long")

    def quiet(self) -> float:
        """Seconds for which nobody has asked the process for anything, since that was asked first.

        It is 0 where nobody knows.
        """
        asked = self._ask_requests()
        if asked is None:
            return 0.0
        worker, told = asked
        now, seen = time.monotonic(), (worker, told["count"])
        if told["under_way"] or seen != self._requests:
            self._requests, self._used_at = seen, now
        return now - self._used_at

    def _ask_requests(self) -> tuple[RestoreProcess, dict[str, Any]] | None:
        """The process, and what it says of its requests; None: it can't be asked just now."""
        with self._changed:
            worker = self._worker if self._mounted else None
        if worker is None or not self._still.acquire(blocking=False):
            return None
        try:
            return worker, self._ask(worker, "requests", "requests")
        except FillingBusy:
            return None
        finally:
            self._still.release()

    @property
    def holds_target(self) -> bool:
        """Whether no target can have the pool's volume to itself as long as this is open."""
        return False

    def grow(self) -> bool:
        """Have who has it open see that the pool's volume is larger; False: it can't."""
        return False

    def settle(self) -> bool:
        """Serve it no more, if it is full and nobody has it open; whether that is so.

        Nobody may begin to open it meanwhile.
        """
        with self._ending:
            return self.is_settled or (self._filled and not self._removed and self._end_full())

    def _end_full(self) -> bool:
        self._stopping.set()
        with self._changed:
            worker = self._worker if self._mounted else None
            if worker is not None:
                self._answer = None
                worker.order("unmount")
                self._changed.wait_for(
                    lambda: self._answer is not None or self._worker is None, _ANSWER_TIMEOUT
                )
            still_there = self._worker is not None
        if still_there or not self._is_ended(_END_TIMEOUT):
            self._resume()
            return False
        assert self.task is not None
        full = RestoreSpec(self.task.backup_id, self.task.repository, self.task.size_bytes, True)
        full.write(self._task_file)
        self.task = full
        for name in ("map", "map.root", "gaps"):
            (self._state / name).unlink(missing_ok=True)
        self._clear_run()
        return True

    def _resume(self) -> None:
        self._stopping.clear()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self.start()

    def close(self) -> None:
        """Unmount it, whoever has it open, and end the process; all that is kept stays.

        Raises:
            FillingBusy: the process can't be ended.
        """
        with self._ending:  # a full one that settles meanwhile removes what is looked at here
            self._stopping.set()
            if not self._is_ended(0.0):
                self._detach()

    def _detach(self) -> None:
        deadline = time.monotonic() + _END_TIMEOUT
        # A connection of its own: nobody may be following the process.
        while True:
            try:
                worker = adopt(self._run)
            except OSError as error:  # it is just ending, or beginning
                if self._is_ended(0.1):
                    return
                if time.monotonic() > deadline:
                    raise FillingBusy(id=self.volume_id, reason=str(error)) from error
            else:
                break
        try:
            worker.order("detach")
            while not self._is_ended(0.5) and time.monotonic() < deadline:
                worker.order("detach")  # one that is just beginning takes none
            if not self._is_ended(0.0):
                worker.kill()
        finally:
            worker.close()
        if not self._is_ended(_END_TIMEOUT):
            raise FillingBusy(id=self.volume_id, reason="its process can't be ended")

    def remove(self) -> None:
        """End it, and forget all of it; the target stays.

        Raises:
            FillingBusy: the process can't be ended.
        """
        with self._ending:
            self._removed = True
        self.close()
        self._clear_run()
        # The task last: what is half removed is removed again.
        for name in ("map", "map.root", "gaps", "task"):
            (self._state / name).unlink(missing_ok=True)
        shutil.rmtree(self._state, ignore_errors=True)

    def _clear_run(self) -> None:
        if self._run.exists():
            mount.detach_dead(self._mountpoint)
            shutil.rmtree(self._run, ignore_errors=True)

    def _is_ended(self, seconds: float) -> bool:
        """Whether the process is dead, within so many seconds."""
        if not self._run.exists():
            return True
        deadline = time.monotonic() + seconds
        while (lock := take_lock(self._run)) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        os.close(lock)
        return True

    # --- the process -----------------------------------------------------------------

    def _serve(self) -> None:
        backoff = Backoff(self._stopping)
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                self._serve_once()
                error: errors.LunrError = FillingDied(id=self.volume_id, reason="nobody knows why")
            except errors.LunrError as raised:
                error = raised
            except OSError as raised:
                error = FillingDied(id=self.volume_id, reason=str(raised))
            if self._stopping.is_set():
                return
            with self._changed:
                self._failed = error
                self._changed.notify_all()
            if time.monotonic() - begun > _HEALTHY:
                backoff.over()
            backoff.wait(error)

    def _serve_once(self) -> None:
        """Serve until the process ends.

        Raises:
            errors.LunrError: why it ended.
        """
        worker = reach(self._run, self._order(), starting=self._starting)
        with self._changed:
            self._worker = worker
        if self._stopping.is_set():  # whoever wants it to end has not seen it
            worker.order("detach")
        try:
            for event in worker.events():
                self._hear(worker, event)
        finally:
            with self._changed:
                self._worker, self._mounted = None, False
                self._changed.notify_all()
            worker.close()

    def _order(self) -> dict[str, Any]:
        assert self.task is not None
        return {
            "task": "volume",
            **self._engine.access(),
            "repository": ids.check(self.task.repository),
            "backup_id": ids.check(self.task.backup_id),
            "mountpoint": str(self._mountpoint),
            "target": str(self._target()),
            "size_bytes": self.task.size_bytes,
            "target_is_zero": True,
            "map": str(self._state / "map"),
            "live": str(self._run / "live"),
            "gaps": str(self._gaps_file) if self._gaps_file.exists() else None,
            "fill": "never",
        }

    def _hear(self, worker: RestoreProcess, event: dict[str, Any]) -> None:
        name = str(event.pop("event"))
        if name == "mounted":
            _log.info("volume %s can be used; it took %s s", self.volume_id, event["seconds"])
            self._give_orders(worker)
        with self._changed:
            match name:
                case "mounted":
                    self._mounted, self._failed = True, None
                    if worker.is_new:
                        self.news.all_is_well()
                case "filled":
                    self._filled = True
                    self.news.all_is_well()
                case "unfetched" | "gone" | "requests" | "busy" | "refused":
                    self._answer = {"event": name, **event}
                case "failed":
                    self._failed = errors.RemoteError(
                        event["code"], event["reason"], bool(event.get("retry"))
                    )
                    raise self._failed
                case _:
                    self.news.hear(name, event)
            self._changed.notify_all()
        if name == "mounted" and worker.is_new:
            # Not here: whoever exports volumes may be waiting for this one's events.
            threading.Thread(target=self._remounted, args=(self.volume_id,), daemon=True).start()

    def _told(self) -> dict[str, Any] | None:
        return self._answer

    def _give_orders(self, worker: RestoreProcess) -> None:
        for order in self._orders:
            worker.order(order)

    def _ask(self, worker: RestoreProcess, order: str, answer: str) -> dict[str, Any]:
        """Give an order, and return the event that answers it.

        Raises:
            FillingBusy: none came.
        """
        with self._changed:
            self._answer = None
            worker.order(order)
            self._changed.wait_for(
                lambda: self._answer is not None or self._worker is not worker, _ANSWER_TIMEOUT
            )
            told = self._told()
        if told is None or told["event"] != answer:
            raise FillingBusy(id=self.volume_id, reason=f"{order!r} was answered by {told}")
        return told
