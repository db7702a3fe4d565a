"""What the client's collections of records have in common.

Methods that start work return the record at once; ``wait`` and
``wait_deleted`` return when the work is over. Lists are iterators that fetch
the next page when it is needed. All raise
:class:`lunr.client.errors.ApiError`, ``Unreachable`` and ``BadAnswer``; the
waits also ``JobFailed`` and ``WaitTimeout``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from lunr.client import waiting
from lunr.client.errors import NotFound
from lunr.client.records import Job, JobRecord, Record
from lunr.client.transport import Transport

R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=JobRecord | Job)
J = TypeVar("J", bound=JobRecord)


class Collection(Generic[R]):
    """The records of one noun.

    Args:
        owner: the first part of their path: the account, or ``admin``.
    """

    #: Their key in the paths and lists of the API.
    key: str
    #: The class of the records.
    record: type[R]

    def __init__(self, transport: Transport, owner: str) -> None:
        self._http = transport
        self._owner = owner

    def get(self, id: str) -> R:
        """One record."""
        return self._request("GET", *self._path(id))

    def _path(self, id: str) -> tuple[str, ...]:
        return self._owner, self.key, id

    def _request(self, method: str, *path: str, **options: Any) -> R:
        return self.record.parse(self._http.request(method, *path, **options))

    def _list(self, limit: int | None = None, **filters: Any) -> Iterator[R]:
        pages = self._http.pages(self.key, self._owner, self.key, params=filters, limit=limit)
        return map(self.record.parse, pages)


class WaitableCollection(Collection[W]):
    """Records that become ready by the work of a node."""

    #: The status of a record that is ready.
    ready_status = "AVAILABLE"

    def wait(
        self,
        id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[W], object] | None = None,
    ) -> W:
        """Wait until a record is ready, or the work on it failed; see :func:`waiting.poll`.

        A volume is ready when it is ACTIVE and no job works on it any more, a snapshot,
        a backup and a group when it is AVAILABLE, an export when it is ATTACHED, a job
        when it is DONE.

        Raises:
            JobFailed: the work failed or was cancelled. For a job, ``code`` is the job's.
        """
        return waiting.poll(
            lambda: self.get(id), self._is_ready, timeout=timeout, progress=progress
        )

    def _is_ready(self, record: W) -> bool:
        return waiting.is_ready(record, self.ready_status)


class JobRecordCollection(WaitableCollection[J]):
    """Records that jobs work on: they are made and deleted by jobs."""

    def delete(self, id: str) -> J:
        """Begin to delete a record.

        Raises:
            InUse, Conflict: something needs it (docs/api.md says what).
        """
        return self._request("DELETE", *self._path(id))

    def wait_deleted(
        self,
        id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[J], object] | None = None,
    ) -> None:
        """Wait until a record that is being deleted is gone.

        Raises:
            JobFailed: it could not be deleted, or no delete was requested.
        """
        try:
            waiting.poll(lambda: self.get(id), waiting.is_gone, timeout=timeout, progress=progress)
        except NotFound:
            return  # the service keeps no record of it
