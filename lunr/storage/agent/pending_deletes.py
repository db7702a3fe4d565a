"""Removes what was deleted and was still there when the node started."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable

from lunr.common import errors
from lunr.storage.agent.backoff import Backoff
from lunr.storage.jobs.consistent_snapshot import drop
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Snapshot

_log = logging.getLogger(__name__)


class PendingDeletes:
    """Volumes and snapshots to remove, one at a time.

    On some pools a volume takes hours, and the node is to start. No job is
    about them: the API counts them as deleted.
    """

    def __init__(
        self, node: NodeContext, subjects: Iterable[str | Snapshot], stopping: threading.Event
    ) -> None:
        self._node = node
        self._waiting = deque(subjects)
        self._percent = {_id(subject): 0 for subject in self._waiting}
        self._stopping = stopping

    def progress(self) -> dict[str, int]:
        """The ids of what is still to be removed, and how far each is, in percent."""
        return dict(self._percent)

    def run(self) -> None:
        """Remove them all, or as far as it gets until the process is told to stop."""
        backoff = Backoff(self._stopping)
        while self._waiting and not self._stopping.is_set():
            subject = self._waiting.popleft()
            try:
                self._remove(subject)
            except errors.Cancelled:
                return
            except Exception as error:  # noqa: BLE001 - of a defect too: the others' turn is next
                self._waiting.append(subject)
                backoff.wait(error)
            else:
                backoff.over()
                del self._percent[_id(subject)]

    def _remove(self, subject: str | Snapshot) -> None:
        if isinstance(subject, Snapshot):
            drop(self._node, subject)
            return

        def tick(done: int, total: int) -> None:
            self._percent[subject] = done * 100 // max(total, 1)
            if self._stopping.is_set():
                raise errors.Cancelled

        _log.info("removing volume %s, which was deleted", subject)
        self._node.exports.detach(subject, force=True)
        self._node.restores.remove(subject)
        self._node.pool.delete(subject, tick)


def _id(subject: str | Snapshot) -> str:
    return subject.id if isinstance(subject, Snapshot) else subject
