"""A backup as a file, in a process of its own: ``python -m lunr.backup.lazy_image.process``.

The first line of standard input is a task, one JSON object; secrets come only this
way. Commands follow, a line each, and events are written to standard output, one JSON
object a line. With ``control`` in the task, the same commands and events go over that
unix socket too, and the process outlives its parent: a file that is in use must not
vanish when the parent ends. Without ``control``, the end of standard input unmounts it.

A task has ``task`` (image or volume), ``store`` (``url`` and ``options``), ``key``,
``repository``, as for lunr/backup/worker.py, ``backup_id``, ``mountpoint`` (a folder;
the file is ``volume`` in it), ``patience`` (seconds a read waits for a store that is
away; 25), ``control`` (path of a socket, or null). An image may have ``size_bytes``, more
than the backup's: zeros follow; and ``root``, a file in which the backup's root is kept, so
that it can be shown again while the store is away. A volume has

=============  ===================================================================
target         the local file or block device
size_bytes     of the volume; at least the backup's
target_is_zero whether it reads as zeros except where an earlier run of this task wrote
map            the disk map; created if it is missing. The backup's root is kept
               beside it, as the same name with ``.root``
live           the live map, valid for this boot; best below /run
gaps           a file of lunr/backup/lazy_image/missing_extents.py: a new map has all other
               blocks as present; null or absent: it has none
fill           eager, lazy or never
concurrency    chunks fetched at once (4)
limit          bytes a second that the fill may fetch (0: no limit)
=============  ===================================================================

=================  ===============================================================
command
=================  ===============================================================
fill MODE          set the mode of the fill, and try damaged chunks again
limit BYTES        set the limit of the fill
status             report ``progress`` again
requests           report ``requests``: how many there were so far (count: reads and writes that
                   the kernel did not do by itself, syncs, discards) and are under way
still              keep absent blocks absent, and report ``unfetched`` (extents:
                   ``[[offset, length], …]``): the parent takes a snapshot of the target now.
                   Writes to absent blocks wait until ``go``, another ``still``, or for
                   10 s. Its end is reported (``gone``, in_time: whether the snapshot can
                   be used)
go                 end ``still``
unmount            unmount and end; answered ``busy`` when the file is open
detach             hide the file now, and end when the last process closes it
=================  ===============================================================

Events: ``mounted`` (path, seconds), ``progress``, ``trouble``, ``filled``
(lunr/backup/lazy_image/background_fill.py), ``store``, ``damaged``
(lunr/backup/read/backup_reader.py),
``refused`` (code, reason: of a command), and last ``done`` (result: ``{"filled"}``) or
``failed`` (code, reason, retry).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lunr.backup.keys import master_keys
from lunr.backup.lazy_image import fuse_protocol, mount, presence_file
from lunr.backup.lazy_image.background_fill import BackgroundFill, Mode
from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.control import Control
from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.backup.lazy_image.presence import UNIT, ChunkLayout, Pieces, area_with, area_without
from lunr.backup.lazy_image.readonly_image import Image
from lunr.backup.lazy_image.restored_volume import RestoredVolume
from lunr.backup.open import open_repository
from lunr.backup.read.backup_reader import Source, kept_root
from lunr.backup.repository.repository import Repository
from lunr.common import errors, ids, log, signals
from lunr.common.linux import reuse_memory

logger = logging.getLogger(__name__)

NAME = "volume"
PATIENCE = 25.0
#: Seconds that one request to Swift may stand still; this process makes the retries.
_REQUEST_TIMEOUT = 15.0
_STILL_AT_MOST = 10.0


class Worker:
    """One mount, from its task to its end.

    The files of a volume are never closed: a late thread must not write to
    another file under the same number. The end of the process closes them.
    """

    def __init__(self, task: Mapping[str, Any], control: Control) -> None:
        self._task = task
        self._control = control
        self._point = Path(self._field("mountpoint"))
        self._closing = contextlib.ExitStack()
        self._volume: RestoredVolume | None = None
        self._fill: BackgroundFill | None = None
        self._progress: dict[str, Any] = {}
        self._release = threading.Event()
        self._filled = False
        self._mounted = False
        self._session: fuse_protocol.Session

    def _field(self, name: str) -> Any:
        try:
            return self._task[name]
        except KeyError:
            raise errors.BadRequest(reason=f"the task has no {name}.") from None

    def report(self, event: str, **fields: object) -> None:
        """Report an event to all readers."""
        if event == "progress":
            self._progress = fields
        self._control.report(event, **fields)

    def detach(self) -> None:
        """Unmount, and end when no process has the file open any more."""
        if self._mounted:
            mount.unmount(self._point, lazy=True)

    def run(self) -> dict[str, Any]:
        """Mount, serve until it is unmounted, and return the result.

        Raises:
            errors.LunrError: the task failed.
        """
        started = time.monotonic()
        with self._closing:
            if self._task.get("control"):
                self._control.open(Path(self._task["control"]))
            file = self._open()
            fd = mount.mount(self._point, fuse_protocol.MAX_IO, read_only=not file.writable)
            patience = float(self._task.get("patience", PATIENCE))
            self._session = fuse_protocol.Session(fd, file, NAME, patience)
            serving = threading.Thread(target=self._session.serve, name="serve")
            serving.start()
            self._mounted = True
            path = self._point / NAME
            try:
                path.stat()  # this process answers it: the mount works
            except OSError as error:
                self.detach()
                raise mount.MountFailed(path=path, reason=f"{error.strerror}.") from error
            self.report("mounted", path=str(path), seconds=round(time.monotonic() - started, 3))
            self._control.listen(self._handle_command)
            fill_thread = self._start_fill()
            serving.join()
            self._mounted = False  # another process may have mounted there by now
            mount.detach_dead(self._point)
            if self._fill is not None:
                self._fill.stop()
                fill_thread.join()
            if self._volume is not None:
                self._volume.sync()
        return {"filled": self._filled}

    def _start_fill(self) -> threading.Thread:
        thread = threading.Thread(target=self._run_fill, name="fill", daemon=True)
        if self._fill is not None:
            thread.start()
        return thread

    def _run_fill(self) -> None:
        assert self._fill is not None
        self._filled = self._fill.run()

    # --- opening ---------------------------------------------------------------------

    def _open(self) -> fuse_protocol.File:
        kind = self._field("task")
        if kind not in ("image", "volume"):
            raise errors.BadRequest(reason=f"there is no task {kind!r}.")
        repository, backup_id = self._repository(), ids.check(self._field("backup_id"))
        if kind == "volume":
            path = Path(self._field("map"))
            root = kept_root(repository, backup_id, path.with_name(f"{path.name}.root"))
        elif self._task.get("root") is not None:
            root = kept_root(repository, backup_id, Path(self._task["root"]))
        else:
            root = repository.load_root(backup_id)
        source = Source(repository, root, self.report)
        self._closing.callback(source.close)
        if kind == "volume":
            return self._open_volume(source)
        size = int(self._task.get("size_bytes", source.size))
        _check_size(size, source)
        return Image(source, size)

    def _repository(self) -> Repository:
        place, name = self._field("store"), self._field("repository")
        keys = master_keys.of_task(self._task.get("key"))
        options = dict(place.get("options") or {})
        timeout = min(float(options.get("timeout", _REQUEST_TIMEOUT)), _REQUEST_TIMEOUT)
        cancel = threading.Event()
        options |= {"retries": 0, "timeout": timeout}
        repository = self._closing.enter_context(
            open_repository(place["url"], name, keys, options, cancel=cancel)
        )
        self._closing.callback(cancel.set)
        return repository

    def _open_volume(self, source: Source) -> RestoredVolume:
        size, geometry = int(self._field("size_bytes")), source.geometry
        _check_size(size, source)
        if geometry.block % UNIT:
            raise errors.BadRequest(reason=f"blocks of {geometry.block} bytes can't be filled in.")
        target = _opened(Path(self._field("target")))
        if target.size < size:
            raise errors.BadRequest(reason=f"{target.path} has {target.size} bytes, not {size}.")
        is_zero = bool(self._task.get("target_is_zero", False))
        opened = self._open_maps(ChunkLayout(size, geometry.chunk), source, target, is_zero)
        self._volume = RestoredVolume(source, target, opened, is_zero)
        self._fill = BackgroundFill(
            self._volume,
            self.report,
            _mode(self._task.get("fill", "eager")),
            int(self._task.get("concurrency", 4)),
            int(self._task.get("limit", 0)),
        )
        return self._volume

    def _open_maps(
        self, shape: ChunkLayout, source: Source, target: BackingFile, is_zero: bool
    ) -> presence_file.Maps:
        path, backup_id = Path(self._field("map")), str(self._field("backup_id"))
        if not path.exists():
            target.sync()  # the new map claims these blocks
            presence_file.create(path, shape, backup_id, self._area(shape, source, is_zero))
        opened = presence_file.Maps(_opened(path), Path(self._field("live")))
        header = opened.header
        if (header.shape, header.backup_id) != (shape, backup_id):
            raise presence_file.MapMismatch(
                path=path, reason=f"{header.backup_id}, {header.shape}."
            )
        return opened

    def _area(self, shape: ChunkLayout, source: Source, is_zero: bool) -> Pieces:
        """The first content of a new map."""
        if self._task.get("gaps") is not None:
            gaps = _read(Path(self._task["gaps"]), str(self._field("backup_id")))
            return area_without(shape, gaps.extents)
        return area_with(shape, source.zero_ranges(shape.size) if is_zero else [])

    # --- commands ----------------------------------------------------------------------

    def _handle_command(self, line: str, answer: Callable[..., None]) -> None:
        """Execute the command `line`; `answer` reports to its sender only."""
        command, _, argument = line.strip().partition(" ")
        try:
            match command:
                case "unmount":
                    mount.unmount(self._point)
                case "detach" | "":  # "": standard input ended
                    self.detach()
                case "status":
                    answer("progress", **self._progress)
                case "requests":
                    under_way = self._session.under_way
                    answer("requests", count=self._session.requests, under_way=under_way)
                case "fill" if self._fill is not None:
                    self._fill.apply_settings(mode=_mode(argument))
                case "limit" if self._fill is not None and argument.isdecimal():
                    self._fill.apply_settings(limit=int(argument))
                case "still" if self._volume is not None:
                    self._freeze(self._volume, answer)
                case "go":
                    self._release.set()
                case _:
                    raise errors.BadRequest(reason=f"the command {line.strip()!r}.")
        except mount.MountBusy as error:
            answer("busy", reason=str(error))
        except errors.LunrError as error:
            answer("refused", code=error.code, reason=str(error))

    def _freeze(self, volume: RestoredVolume, answer: Callable[..., None]) -> None:
        """Keep absent blocks absent, in a thread of its own, until ``release``."""
        release = threading.Event()
        self._release, earlier = release, self._release
        earlier.set()  # the sender of the earlier command has ended it, or was killed

        def hold() -> None:
            with volume.freeze() as extents:
                answer("unfetched", extents=[(start, end - start) for start, end in extents])
                in_time = release.wait(_STILL_AT_MOST) and self._release is release
            answer("gone", in_time=in_time)

        threading.Thread(target=hold, name="still", daemon=True).start()


def _check_size(size: int, source: Source) -> None:
    if size < source.size:
        raise errors.BadRequest(
            reason=f"size_bytes {size} is less than the backup's {source.size}."
        )


def _opened(path: Path) -> BackingFile:
    try:
        return BackingFile(path)
    except OSError as error:
        raise errors.BadRequest(reason=f"{path}: {error.strerror}.") from error


def _read(path: Path, backup_id: str) -> MissingExtents:
    try:
        gaps = MissingExtents.read(path)
    except OSError as error:
        raise errors.BadRequest(reason=f"{path}: {error.strerror}.") from error
    if gaps.backup_id != backup_id:
        raise errors.BadRequest(reason=f"{path} is about the backup {gaps.backup_id}.")
    return gaps


def _mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        raise errors.BadRequest(reason=f"fill is eager, lazy or never, not {text!r}.") from None


def main() -> int:
    """Run the task on standard input."""
    log.setup()
    reuse_memory()
    # A reader of the kernel's requests should not wait 5 ms for each turn of a fetching thread.
    sys.setswitchinterval(0.0005)
    control = Control(sys.stdin, sys.stdout)
    try:
        result = _run(sys.stdin.readline(), control)
        control.report("done", result=result)
    except errors.LunrError as error:
        control.report("failed", **error.as_dict())
    except Exception as error:  # the parent must get an answer, whatever it is
        logger.exception("The task failed with an unexpected error.")
        wrapped = errors.LunrError(reason=f"{type(error).__name__}: {error}")
        control.report("failed", **wrapped.as_dict())
    else:
        return 0
    finally:
        control.close()
    return 1


def _run(line: str, control: Control) -> dict[str, Any]:
    try:
        task = json.loads(line)
    except ValueError:
        task = None
    if not isinstance(task, dict):
        raise errors.BadRequest(reason="the task is not a JSON object.")
    worker = Worker(task, control)
    signals.on_signal(worker.detach)
    return worker.run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads may hang in a request to a store that does not answer.
    os._exit(code)
