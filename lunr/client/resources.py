"""What an account has: volumes, snapshots, backups, exports, jobs.

What their methods raise, :mod:`lunr.client.collection` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lunr.client import waiting
from lunr.client.collection import JobRecordCollection, WaitableCollection
from lunr.client.records import Backup, Export, Job, Snapshot, Volume
from lunr.common import ids


class Volumes(JobRecordCollection[Volume]):
    """An account's volumes."""

    key, record = "volumes", Volume

    def _is_ready(self, record: Volume) -> bool:
        return waiting.is_settled(record)

    def create(
        self,
        *,
        size: int | None = None,
        name: str | None = None,
        volume_type_name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        backup: str | None = None,
        snapshot: str | None = None,
        source_volume: str | None = None,
        fill: str | None = None,
        fill_limit: int | None = None,
        affinity: str | None = None,
        force_node: str | None = None,
        id: str | None = None,
    ) -> Volume:
        """Begin to create a volume: empty, or from a backup, a snapshot or another volume.

        Sent again it is the same volume, so a lost answer costs nothing.

        Args:
            size: GiB; with a source it may be left out.
            snapshot, source_volume: the volume is made on the node where they are, if it
                can be there, else copied to another.
            backup: the volume can be used at once (:meth:`wait_usable`), and is filled then.
            fill: how: ``eager``, ``lazy`` or ``never``.
            fill_limit: at most so many MiB a second; 0: no limit.
            affinity: ``different_node:ID[,ID]`` or ``different_group:ID[,ID]``.
            force_node: for admins, the node that shall have it.
            id: the caller's choice; by default a new one.

        Raises:
            QuotaExceeded: the account may have no more volumes, or GiB.
            NoRoom: no node has room for it.
            IdInUse: `id` is another volume's, or this one was created with other parameters.
        """
        body = {
            "size": size,
            "name": name,
            "volume_type_name": volume_type_name,
            "metadata": metadata,
            "backup": backup,
            "snapshot": snapshot,
            "source_volume": source_volume,
            "fill": fill,
            "fill_limit": fill_limit,
            "affinity": affinity,
            "force_node": force_node,
        }
        volume_id = ids.new() if id is None else id
        return self._request("PUT", *self._path(volume_id), body=body)

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        volume_type_name: str | None = None,
        node_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Volume]:
        """Volumes, newest first; `limit`: at most so many.

        Args:
            metadata: pairs that the volumes must have.
        """
        return self._list(
            limit,
            status=status,
            name=name,
            volume_type_name=volume_type_name,
            node_id=node_id,
            **metadata_filters(metadata),
        )

    def update(
        self,
        id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        fill: str | None = None,
        fill_limit: int | None = None,
    ) -> Volume:
        """Change the name, replace the metadata as a whole, or fill it otherwise from now on."""
        body = {"name": name, "metadata": metadata, "fill": fill, "fill_limit": fill_limit}
        return self._request("POST", *self._path(id), body=body)

    def wait_usable(
        self,
        id: str,
        *,
        timeout: float | None = None,
        progress: Callable[[Volume], object] | None = None,
    ) -> Volume:
        """Wait until a volume can be exported and written, though it may still be filled."""
        return waiting.poll(
            lambda: self.get(id), waiting.is_usable, timeout=timeout, progress=progress
        )

    def extend(self, id: str, size: int) -> Volume:
        """Begin to make a volume `size` GiB large, also while it is exported."""
        path = (*self._path(id), "extend")
        return self._request("POST", *path, body={"size": size})


class Snapshots(JobRecordCollection[Snapshot]):
    """An account's snapshots."""

    key, record = "snapshots", Snapshot

    def create(
        self,
        volume_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Begin to take a snapshot of a volume."""
        path = (self._owner, "volumes", volume_id, "snapshots")
        body = {"name": name, "metadata": metadata}
        return self._request("POST", *path, body=body)

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        volume_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Snapshot]:
        """Snapshots, newest first; `limit`: at most so many."""
        return self._list(limit, status=status, name=name, volume_id=volume_id)


class Backups(JobRecordCollection[Backup]):
    """An account's backups."""

    key, record = "backups", Backup

    def create(
        self,
        volume_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        protected: bool | None = None,
        full: bool | None = None,
        snapshot: str | None = None,
        id: str | None = None,
    ) -> Backup:
        """Begin to back a volume up. Sent again it is the same backup.

        Args:
            protected: True: it is neither deleted nor pruned until that is taken back.
            snapshot: save this snapshot of the volume instead of the volume as it is now.
            full: True: read and store all, without a parent.
            id: the caller's choice; by default a new one.
        """
        body = {
            "name": name,
            "metadata": metadata,
            "protected": protected,
            "full": full,
            "snapshot": snapshot,
        }
        path = (self._owner, "volumes", volume_id, "backups", ids.new() if id is None else id)
        return self._request("PUT", *path, body=body)

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        volume_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Backup]:
        """Backups, newest first; `limit`: at most so many."""
        return self._list(limit, status=status, name=name, volume_id=volume_id)

    def update(
        self,
        id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        protected: bool | None = None,
    ) -> Backup:
        """Change the name, replace the metadata as a whole, protect it or take that back."""
        body = {"name": name, "metadata": metadata, "protected": protected}
        return self._request("POST", *self._path(id), body=body)

    def verify(self, id: str) -> Job:
        """Begin to read and check all of a backup; the job has the outcome."""
        return Job.parse(self._http.request("POST", *self._path(id), "verify", body={}))

    def restores(self, id: str) -> Iterator[Volume]:
        """The volumes that are being restored from a backup now."""
        return map(Volume.parse, self._http.pages("restores", *self._path(id), "restores"))


class Exports(JobRecordCollection[Export]):
    """The exports of an account's volumes; a volume has at most one, named by the volume's id."""

    key, record, ready_status = "exports", Export, "ATTACHED"

    def create(
        self, volume_id: str, *, initiator: str | None = None, ip: str | None = None
    ) -> Export:
        """Begin to export a volume to one initiator.

        Args:
            initiator: its IQN; this or `ip` is needed.
            ip: its address.
        """
        body = {"initiator": initiator, "ip": ip}
        return self._request("PUT", *self._path(volume_id), body=body)

    def delete(self, volume_id: str, *, force: bool = False) -> Export:
        """Begin to end an export.

        Args:
            force: also while an initiator is logged in; without it the node refuses then,
                and ``wait_deleted`` raises JobFailed.
        """
        params = {"force": "true"} if force else {}
        return self._request("DELETE", *self._path(volume_id), params=params)

    def _path(self, id: str) -> tuple[str, ...]:
        return self._owner, "volumes", id, "export"


class Jobs(WaitableCollection[Job]):
    """The jobs of an account."""

    key, record = "jobs", Job

    def list(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        volume_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first; `limit`: at most so many."""
        return self._list(limit, status=status, kind=kind, volume_id=volume_id)

    def cancel(self, id: str) -> None:
        """Cancel a job; a job that runs ends a little later.

        Raises:
            Conflict: it is over.
        """
        self._http.request("DELETE", *self._path(id))

    def _is_ready(self, record: Job) -> bool:
        return waiting.is_done(record)


def metadata_filters(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The filters of a list of volumes for pairs that the volumes must have."""
    return {f"metadata.{key}": value for key, value in (metadata or {}).items()}
