"""Removes deleted volumes that were still there when the node started."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection

from lunr.common import errors
from lunr.storage.backoff import Backoff
from lunr.storage.jobs import Node

_log = logging.getLogger(__name__)


class Removals:
    """Volumes to remove, one at a time: on some pools each takes hours, and the node is to start.

    No job is about them: the API counts them as deleted.
    """

    def __init__(self, node: Node, volume_ids: Collection[str], stopping: threading.Event) -> None:
        self._node = node
        self._waiting = deque(sorted(volume_ids))
        self._percent = dict.fromkeys(self._waiting, 0)
        self._stopping = stopping

    def progress(self) -> dict[str, int]:
        """The volumes that are still to be removed, and how far each is, in percent."""
        return dict(self._percent)

    def run(self) -> None:
        """Remove them all, or as far as it gets until the process is told to stop."""
        backoff = Backoff(self._stopping)
        while self._waiting and not self._stopping.is_set():
            volume_id = self._waiting.popleft()
            try:
                self._remove(volume_id)
            except errors.Cancelled:
                return
            except errors.LunrError as error:
                self._waiting.append(volume_id)  # the others first
                backoff.wait(error)
            else:
                backoff.over()
                del self._percent[volume_id]

    def _remove(self, volume_id: str) -> None:
        _log.info("removing volume %s, which was deleted", volume_id)

        def tick(done: int, total: int) -> None:
            self._percent[volume_id] = done * 100 // max(total, 1)
            if self._stopping.is_set():
                raise errors.Cancelled

        self._node.exports.detach(volume_id, force=True)
        self._node.pool.delete(volume_id, tick)
