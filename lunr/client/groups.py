"""Groups: the backups of a running machine's disks at one instant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lunr.client.collection import JobRecordCollection
from lunr.client.records import Group


class Groups(JobRecordCollection[Group]):
    """An account's groups. Deleting one deletes its backups, all of them or none."""

    key, record = "groups", Group

    def put(
        self,
        id: str,
        *,
        machine: str,
        created_at: str,
        status: str,
        backups: Sequence[Mapping[str, Any]],
        progress: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Group:
        """Announce an external save of a group, renew its lease, or report the group AVAILABLE.

        `status` is SAVING before the report. The same call may be repeated.

        Args:
            machine: the name of the machine.
            created_at: the instant, ISO 8601 with its zone.
            backups: ``id``, ``disk``, ``volume_id``, ``size_bytes``, and what docs/api.md names.

        Raises:
            WrongState: it was deleted meanwhile.
            IdInUse: the group, a backup or a volume of that id is another one.
            QuotaExceeded: the account has all the backups or volumes it may have.
        """
        body = {
            "machine": machine,
            "created_at": created_at,
            "status": status,
            "backups": list(backups),
            "progress": progress,
            "metadata": metadata,
        }
        return self._request("PUT", *self._path(id), body=body)

    def list(
        self, *, status: str | None = None, machine: str | None = None, limit: int | None = None
    ) -> Iterator[Group]:
        """Groups, newest first; `limit`: at most so many."""
        return self._list(limit, status=status, machine=machine)
