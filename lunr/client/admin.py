"""What an admin's token can do besides: accounts, tokens, nodes, types, everyone's things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

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
from lunr.client.resources import Jobs
from lunr.client.schedules import AllSchedules
from lunr.client.transport import Transport

R = TypeVar("R", bound=Record)


class _Records(Generic[R]):
    """Administered records of one kind under ``/v1.0/admin/{key}``."""

    def __init__(self, transport: Transport, key: str, record: type[R]) -> None:
        self._http = transport
        self._key = key
        self._record = record

    def list(self) -> Iterator[R]:
        """All of them, newest first."""
        return map(self._record.parse, self._http.pages(self._key, "admin", self._key))

    def get(self, id: str) -> R:
        """One of them."""
        return self._record.parse(self._http.request("GET", "admin", self._key, id))

    def delete(self, id: str) -> None:
        """Delete one.

        Raises:
            Conflict: something still needs it.
        """
        self._http.request("DELETE", "admin", self._key, id)

    def _create(self, body: Mapping[str, Any]) -> R:
        return self._record.parse(self._http.request("POST", "admin", self._key, body=body))

    def _update(self, id: str, body: Mapping[str, Any]) -> R:
        return self._record.parse(self._http.request("POST", "admin", self._key, id, body=body))


class Accounts(_Records[Account]):
    """The accounts. Quotas: ``volumes``, ``gigabytes``, ``snapshots``, ``backups``."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "accounts", Account)

    def create(self, id: str, *, quotas: Mapping[str, int | None] | None = None) -> Account:
        """Make an account; a quota left out or None is the configured default.

        Raises:
            IdInUse: there is, or was, an account of that id.
        """
        return self._create({"id": id, "quotas": quotas})

    def update(self, id: str, *, quotas: Mapping[str, int | None]) -> Account:
        """Change the quotas that are named; None goes back to the configured default."""
        return self._update(id, {"quotas": quotas})


class Tokens:
    """The tokens of accounts."""

    def __init__(self, transport: Transport) -> None:
        self._http = transport

    def list(self, account_id: str) -> Iterator[Token]:
        """An account's tokens, without their secrets."""
        return map(Token.parse, self._http.pages("tokens", *self._path(account_id)))

    def create(self, account_id: str, *, role: str = "member") -> Token:
        """Make a token with the role ``member`` or ``admin``; its secret is told only now."""
        path = self._path(account_id)
        return Token.parse(self._http.request("POST", *path, body={"role": role}))

    def delete(self, account_id: str, token_id: str) -> None:
        """Delete a token: from now on it opens nothing."""
        self._http.request("DELETE", *self._path(account_id), token_id)

    def _path(self, account_id: str) -> tuple[str, ...]:
        return "admin", "accounts", account_id, "tokens"


class Nodes(_Records[Node]):
    """The storage nodes."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "nodes", Node)

    def create(
        self,
        id: str,
        *,
        weight: int | None = None,
        group: str | None = None,
        volume_types: Sequence[str] | None = None,
    ) -> Node:
        """Make a node known; the answer's ``token`` is for that node, and told only now."""
        body = {"id": id, "weight": weight, "group": group, "volume_types": volume_types}
        return self._create(body)

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
        body = {"weight": weight, "group": group, "volume_types": volume_types, "status": status}
        return self._update(id, body)

    def delete(self, id: str, *, force: bool = False) -> None:
        """Forget a node; its token opens nothing from then on.

        Args:
            force: it is lost with all that is on it: its volumes and snapshots are DELETED.

        Raises:
            InUse: it has volumes, and `force` was not given.
        """
        self._http.request(
            "DELETE", "admin", "nodes", id, params={"force": "true"} if force else {}
        )


class VolumeTypes(_Records[VolumeType]):
    """The types that volumes are of."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "volume_types", VolumeType)

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
        limits = _limits(min_size, max_size, read_iops, write_iops)
        return self._create({"name": name, **limits, "retention": retention})

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
        """Change a type; volumes that are there keep their size."""
        limits = _limits(min_size, max_size, read_iops, write_iops)
        return self._update(name, {**limits, "retention": retention})


def _limits(
    min_size: int | None, max_size: int | None, read_iops: int | None, write_iops: int | None
) -> dict[str, int | None]:
    return {
        "min_size": min_size,
        "max_size": max_size,
        "read_iops": read_iops,
        "write_iops": write_iops,
    }


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

        Collecting has two steps: what no backup needs is condemned, and then swept, that is
        really deleted, once all who might still use it are through.

        Args:
            wait: return when all that is condemned is swept, with the job that ran last.
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
        # The sweep is there as soon as the collection is done; one that failed before may be
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
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Volume]:
        """Every account's volumes, or one's; filters as in ``volumes.list``."""
        return self._everyones("volumes", Volume, limit, account_id=account_id, **filters)

    def snapshots(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Snapshot]:
        """Every account's snapshots, or one's; filters as in ``snapshots.list``."""
        return self._everyones("snapshots", Snapshot, limit, account_id=account_id, **filters)

    def backups(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Backup]:
        """Every account's backups, or one's; filters as in ``backups.list``."""
        return self._everyones("backups", Backup, limit, account_id=account_id, **filters)

    def exports(
        self, *, account_id: str | None = None, limit: int | None = None, status: str | None = None
    ) -> Iterator[Export]:
        """Every account's exports, or one's, without their passwords."""
        return self._everyones("exports", Export, limit, account_id=account_id, status=status)

    def jobs(
        self, *, account_id: str | None = None, limit: int | None = None, **filters: str
    ) -> Iterator[Job]:
        """Every account's jobs, or one's; filters as in ``jobs.list``."""
        return self._everyones("jobs", Job, limit, account_id=account_id, **filters)

    def _everyones(
        self, key: str, record: type[R], limit: int | None, **filters: str | None
    ) -> Iterator[R]:
        return map(record.parse, self._http.pages(key, "admin", key, params=filters, limit=limit))
