"""The engine as a child process: ``python -m lunr.backup.worker``.

The first line of standard input is a task, one JSON object; secrets come only
this way. The input stays open: a line ``cancel`` cancels the task; the end of the input
means that the parent died. Standard output has one JSON object a line:
``{"event": "progress", "done", "total"}`` in bytes, at most five a second, and
at the end ``{"event": "done", "result"}`` (exit code 0) or ``{"event":
"failed", "code", "reason", "retry"}`` (exit code 1). The log is on standard error.

A task has ``task`` (save, restore, verify, delete, collect or sweep),
``store`` (``url`` and ``options``), ``key`` (the master keys in hexadecimal, one a
line, the first writes; null: the public one), ``repository``, ``concurrency``,
``compression`` (``zstd`` or ``none``), ``encryption`` (``aes-256-gcm`` or ``none``),
``limit`` (bytes a second to and from the store, in all; 0 or absent: no limit), and:

========  ====================================================================
save      source, size_bytes, backup_id, volume_id, parent_id, ``condemned`` (collections
          pending deletion), created_at,
          like (ids of dedup candidates; default: none),
          allocated (``[[first byte, end], …]``, in order: elsewhere are only
          zeros; null or absent: unknown), changed (likewise, the ranges that may
          differ from the backup parent_id; ignored if the save can't refer to that),
          absent (likewise, the ranges that are not local: the backing backup base_id has
          them), internal (whether it is a hidden backup; default false).
          The result's ``written`` is false if the backup existed already, of any time
restore   backup_id, target, size_bytes, target_is_zero
verify    backup_ids, share (``[number, of]``: only that share of the objects; null or
          absent: all)
delete    backup_id
collect   keep, required
sweep     keep, required, collection
========  ====================================================================
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from lunr.backup.errors import BackupMissing
from lunr.backup.format.blocks import Compression
from lunr.backup.keys import derive
from lunr.backup.keys.master_keys import of_task
from lunr.backup.open import open_repository
from lunr.backup.read.backup_reader import Source as Stored
from lunr.backup.read.overlay import Overlay
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import VerifyShard, verify
from lunr.backup.save.block_source import FileSource, Source
from lunr.backup.save.save import Backup, Progress, save
from lunr.common import errors, ids, log
from lunr.common.extents import Extents

logger = logging.getLogger(__name__)

_REPORTS_EVERY = 0.2
#: Seconds that a cancelled task has to end by itself.
_PATIENCE = 0.5


@dataclass(frozen=True)
class Job:
    """A running task, with what every kind of task needs."""

    task: Mapping[str, Any]
    repository: Repository
    progress: Progress
    cancel: threading.Event

    @property
    def concurrency(self) -> int:
        """Requests to the store at once."""
        return int(self.task.get("concurrency", 4))

    def __getitem__(self, field: str) -> Any:
        return _field(self.task, field)


def _field(task: Mapping[str, Any], field: str) -> Any:
    try:
        return task[field]
    except KeyError:
        raise errors.BadRequest(reason=f"the task has no {field}.") from None


def _save(job: Job) -> dict[str, Any]:
    task = job.task
    source = FileSource(Path(job["source"]), job["size_bytes"], task.get("allocated"))
    with source, _overlaid(job, source) as whole:
        is_there = _is_there(job.repository, job["backup_id"])
        root = save(
            job.repository,
            whole,
            Backup(
                backup_id=job["backup_id"],
                volume_id=job["volume_id"],
                created_at=job["created_at"],
                parent_id=task.get("parent_id"),
                like=tuple(ids.check(id, "like") for id in task.get("like", ())),
                pending_deletion=tuple(task.get("condemned", ())),
                changed=task.get("changed"),
                internal=bool(task.get("internal", False)),
            ),
            concurrency=job.concurrency,
            compression=Compression[task.get("compression", "zstd").upper()],
            progress=job.progress,
            cancel=job.cancel,
        )
    return {**asdict(root.statistics), "parent_id": root.parent_id, "written": not is_there}


@contextlib.contextmanager
def _overlaid(job: Job, local: FileSource) -> Iterator[Source]:
    """The source of the save: `local`, with its absent ranges from the backing backup."""
    absent = job.task.get("absent")
    if not absent:
        yield local
        return
    base = Stored(job.repository, job.repository.load_root(job["base_id"]))
    try:
        yield Overlay(local, absent, base)
    finally:
        base.close()


def _is_there(repository: Repository, backup_id: str) -> bool:
    try:
        repository.load_root(backup_id)
    except BackupMissing:
        return False
    return True


def _restore(job: Job) -> dict[str, Any]:
    task = job.task
    restored = restore(
        job.repository,
        job["backup_id"],
        Path(job["target"]),
        size_bytes=task.get("size_bytes"),
        target_is_zero=bool(task.get("target_is_zero", False)),
        concurrency=job.concurrency,
        progress=job.progress,
        cancel=job.cancel,
    )
    return asdict(restored)


def _verify(job: Job) -> dict[str, Any]:
    share = job.task.get("share")
    done = verify(
        job.repository,
        job["backup_ids"],
        share=None if share is None else VerifyShard(*share),
        concurrency=job.concurrency,
        progress=job.progress,
        cancel=job.cancel,
    )
    # By reason: a chain of thousands that shares a bad object would not fit into one request.
    groups: dict[str, list[str]] = {}
    for backup_id, reason in sorted(done.damaged.items()):
        groups.setdefault(reason, []).append(backup_id)
    damaged = [
        {"reason": reason, "backup_ids": backup_ids} for reason, backup_ids in groups.items()
    ]
    return {**asdict(done), "damaged": damaged}


def _delete(job: Job) -> dict[str, Any]:
    return {"deleted": job.repository.delete_root(job["backup_id"])}


def _collect(job: Job) -> dict[str, Any]:
    return asdict(
        collect(
            job.repository,
            job.task.get("keep", ()),
            threads=job.concurrency,
            cancel=job.cancel,
            required=job.task.get("required", ()),
        )
    )


def _sweep(job: Job) -> dict[str, Any]:
    task = job.task
    return asdict(
        sweep(
            job.repository,
            job["collection"],
            task.get("keep", ()),
            threads=job.concurrency,
            cancel=job.cancel,
            required=task.get("required", ()),
        )
    )


TASKS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "save": _save,
    "restore": _restore,
    "verify": _verify,
    "delete": _delete,
    "collect": _collect,
    "sweep": _sweep,
}


class _Reporter:
    """Writes events, whole lines, from any thread."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._next = 0.0

    def event(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._write(event, fields)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._output.write(json.dumps({"event": event, **fields}) + "\n")
        self._output.flush()

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        with self._lock:
            if now >= self._next or done >= total:
                self._next = now + _REPORTS_EVERY
                self._write("progress", {"done": done, "total": total})


def parse(line: str) -> dict[str, Any]:
    """The task in `line`, with its ranges as :class:`Extents`.

    As lists, half a million of them would take a third of the memory that a worker may use.

    Raises:
        errors.BadRequest: it is no task.
    """
    try:
        task = json.loads(line)
    except ValueError:
        task = None
    if not isinstance(task, dict):
        raise errors.BadRequest(reason="the task is not a JSON object.")
    for name in ("allocated", "changed", "absent"):
        if task.get(name) is None:
            continue
        if not isinstance(task[name], list):
            raise errors.BadRequest(reason=f"{name} is no list.")
        try:
            task[name] = Extents(task[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise errors.BadRequest(reason=f"{name}: {error}") from error
    return task


def run(task: Mapping[str, Any], progress: Progress, cancel: threading.Event) -> dict[str, Any]:
    """Run `task`, as :func:`parse` returns it, and return its result.

    Raises:
        errors.LunrError: it failed.
        errors.BadRequest: a field is missing or has a wrong value.
    """
    handler = TASKS.get(_field(task, "task"))
    if handler is None:
        raise errors.BadRequest(reason=f"there is no task {task['task']!r}.")
    place, name = _field(task, "store"), _field(task, "repository")
    keys, cipher = of_task(task.get("key")), derive.CIPHERS[task.get("encryption", "aes-256-gcm")]
    limit = task.get("limit", 0)
    if not isinstance(limit, int) or limit < 0:
        raise errors.BadRequest(reason="limit is no number of bytes a second.")
    url, options = _field(place, "url"), place.get("options", {})
    with open_repository(url, name, keys, options, cancel, limit, cipher) as repository:
        return handler(Job(task, repository, progress, cancel))


def main() -> int:
    """Run the task on standard input."""
    log.setup()
    reporter = _Reporter(sys.stdout)
    try:
        task = parse(sys.stdin.readline())
    except errors.BadRequest as error:
        reporter.event("failed", **error.as_dict())
        return 1
    cancel = threading.Event()
    finished = threading.Event()

    def listen() -> None:
        for order in sys.stdin:
            if order.strip() == "cancel":
                cancel.set()
                if not finished.wait(_PATIENCE):  # it hangs in a request to the store
                    reporter.event("failed", **errors.Cancelled().as_dict())
                    os._exit(1)
        if not finished.is_set():
            logger.error("The parent is gone.")
            os._exit(2)  # at once: the next attempt must not find this process at work

    threading.Thread(target=listen, daemon=True).start()
    try:
        result = run(task, reporter.progress, cancel)
    except errors.LunrError as error:
        finished.set()
        reporter.event("failed", **error.as_dict())
        return 1
    except Exception as error:  # the parent must get an answer, whatever it is
        finished.set()
        logger.exception("The task failed with an unexpected error.")
        reporter.event(
            "failed", **errors.LunrError(reason=f"{type(error).__name__}: {error}").as_dict()
        )
        return 1
    finished.set()
    reporter.event("done", result=result)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads may hang in a request to a store that does not answer.
    os._exit(code)
