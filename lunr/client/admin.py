"""What only an admin's token may: accounts, tokens, nodes, types, records of all accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lunr.client.collection import Collection
from lunr.client.records import (
    Account,
    Backup,
    Export,
    Job,
    Node,
    Record,
    Snapshot,
    Token,
    Volume,
    VolumeType,
)
from lunr.client.resources import (
    Backups,
    Exports,
    Jobs,
    Snapshots,
    Volumes,
    metadata_filters,
)
from lunr.client.schedules import AllSchedules
from lunr.client.transport import Transport

R = TypeVar("R", bound=Record)


class _AdminCollection(Collection[R]):
    """Records under ``/v1.0/admin`` that no job works on."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "admin")

    def list(self) -> Iterator[R]:
        """All records, newest first."""
        return self._list()

    def delete(self, id: str) -> None:
        """Delete a record.

        Raises:
            Conflict: something still needs it.
        """
        self._http.request("DELETE", *self._path(id))

    def _create(self, **fields: Any) -> R:
        return self._request("POST", self._owner, self.key, body=fields)

    def _update(self, id: str, **fields: Any) -> R:
        return self._request("POST", *self._path(id), body=fields)


class Accounts(_AdminCollection[Account]):
    """The accounts. Quotas: ``volumes``, ``gigabytes``, ``snapshots``, ``backups``."""

    key, record = "accounts", Account

    def create(self, id: str, *, quotas: Mapping[str, int | None] | None = None) -> Account:
        """Make an account; a quota left out or None is the configured default.

        Raises:
            IdInUse: there is, or was, an account with that id.
        """
        return self._create(id=id, quotas=quotas)

    def update(self, id: str, *, quotas: Mapping[str, int | None]) -> Account:
        """Change the quotas that are named; None goes back to the configured default."""
        return self._update(id, quotas=quotas)


class Tokens:
    """The tokens of accounts."""

    def __init__(self, transport: Transport) -> None:
        self._http = transport

    def list(self, account_id: str) -> Iterator[Token]:
        """An account's tokens, without their secrets."""
        return map(Token.parse, self._http.pages("tokens", *self._path(account_id)))

    def create(self, account_id: str, *, role: str = "member") -> Token:
        """Make a token with the role ``member`` or ``admin``; only this answer has its secret."""
        path = self._path(account_id)
        return Token.parse(self._http.request("POST", *path, body={"role": role}))

    def delete(self, account_id: str, token_id: str) -> None:
        """Delete a token: it is no longer valid."""
        self._http.request("DELETE", *self._path(account_id), token_id)

    def _path(self, account_id: str) -> tuple[str, ...]:
        return "admin", "accounts", account_id, "tokens"


class Nodes(_AdminCollection[Node]):
    """The storage nodes."""

    key, record = "nodes", Node

    def create(
        self,
        id: str,
        *,
        weight: int | None = None,
        group: str | None = None,
        volume_types: Sequence[str] | None = None,
    ) -> Node:
        """Register a node; only this answer has its ``token``."""
        return self._create(id=id, weight=weight, group=group, volume_types=volume_types)

    def update(
        self,
        id: str,
        *,
        weight: int | None = None,
        group: str | None = None,
        volume_types: Sequence[str] | None = None,
        status: str | None = None,
    ) -> Node:
        """Change a node; `status` is ACTIVE or MAINTENANCE (no new volumes)."""
        return self._update(
            id, weight=weight, group=group, volume_types=volume_types, status=status
        )

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove a node; its token is no longer valid.

        Args:
            force: the node is lost; its volumes and snapshots become DELETED.

        Raises:
            InUse: the node has volumes, and `force` is not set.
        """
        params = {"force": "true"} if force else {}
        self._http.request("DELETE", *self._path(id), params=params)


class VolumeTypes(_AdminCollection[VolumeType]):
    """The types that volumes are of."""

    key, record = "volume_types", VolumeType

    def create(
        self,
        name: str,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        read_iops: int | None = None,
        write_iops: int | None = None,
        retention: Mapping[str, int] | None = None,
    ) -> VolumeType:
        """Make a type; sizes in GiB, IOPS of 0 have no limit.

        Args:
            retention: the rules for its volumes that have none of their own, all at once.
        """
        return self._create(
            name=name,
            min_size=min_size,
            max_size=max_size,
            read_iops=read_iops,
            write_iops=write_iops,
            retention=retention,
        )

    def update(
        self,
        name: str,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        read_iops: int | None = None,
        write_iops: int | None = None,
        retention: Mapping[str, int] | None = None,
    ) -> VolumeType:
        """Change a type; existing volumes keep their size."""
        return self._update(
            name,
            min_size=min_size,
            max_size=max_size,
            read_iops=read_iops,
            write_iops=write_iops,
            retention=retention,
        )


class Admin:
    """What only the role ``admin`` may; the others get Forbidden."""

    def __init__(self, transport: Transport) -> None:
        self._http = transport
        self.accounts = Accounts(transport)
        self.tokens = Tokens(transport)
        self.nodes = Nodes(transport)
        self.volume_types = VolumeTypes(transport)
        self.schedules = AllSchedules(transport)

    def collect(
        self,
        account_id: str,
        *,
        wait: bool = False,
        timeout: float | None = None,
        progress: Callable[[Job], object] | None = None,
    ) -> Job:
        """Begin to collect an account's garbage, and return the job.

        Garbage collection has two steps: a mark lists what no backup needs as pending
        deletion, and a later sweep deletes it, once no running work can use it any more.

        Args:
            wait: return when all pending deletions are swept, with the job that ran last.
            timeout: seconds for each of the jobs.

        Raises:
            JobFailed, WaitTimeout: with `wait`.
        """
        path = ("admin", "accounts", account_id, "collect")
        job = Job.parse(self._http.request("POST", *path, body={}))
        if not wait:
            return job
        jobs = Jobs(self._http, account_id)
        last = jobs.wait(job.id, timeout=timeout, progress=progress)
        # The sweep is queued as soon as the mark is done; an earlier one that failed may be
        # tried again beside it.
        sweeps = [
            sweep
            for sweep in jobs.list(kind="repository.sweep")
            if sweep.status in ("QUEUED", "RUNNING")
            or (sweep.created_at or "") >= (job.created_at or "")
        ]
        for sweep in reversed(sweeps):
            last = jobs.wait(sweep.id, timeout=timeout, progress=progress)
        return last

    def volumes(
        self,
        *,
        account_id: str | None = None,
        limit: int | None = None,
        metadata: Mapping[str, str] | None = None,
        **filters: str,
    ) -> Iterator[Volume]:
        """The volumes of all accounts, or of one; filters as in ``volumes.list``."""
        filters |= metadata_filters(metadata)
        return self._list(Volumes, limit, account_id=account_id, **filters)

    def snapshots(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Snapshot]:
        """The snapshots of all accounts, or of one; filters as in ``snapshots.list``."""
        return self._list(Snapshots, limit, account_id=account_id, **filters)

    def backups(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Backup]:
        """The backups of all accounts, or of one; filters as in ``backups.list``."""
        return self._list(Backups, limit, account_id=account_id, **filters)

    def exports(
        self, *, account_id: str | None = None, limit: int | None = None, status: str | None = None
    ) -> Iterator[Export]:
        """The exports of all accounts, or of one, without their passwords."""
        return self._list(Exports, limit, account_id=account_id, status=status)

    def jobs(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Job]:
        """The jobs of all accounts, or of one; filters as in ``jobs.list``."""
        return self._list(Jobs, limit, account_id=account_id, **filters)

    def _list(
        self, collection: type[Collection[R]], limit: int | None, **filters: str | None
    ) -> Iterator[R]:
        return collection(self._http, "admin")._list(limit, **filters)
