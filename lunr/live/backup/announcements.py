"""Registration of backup groups at a lunr service: before the save, and when they are complete.

Without a service a group is only in the store. With it the backups belong to the account like
all others, and the service's garbage collection keeps the objects that are being saved. A backup
needs the announcement: if the store's listings are late, the collector does not see the writer
session in time. A completion that could not be reported is reported before the next backup, from
the records in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lunr.backup.errors import BackupMissing
from lunr.backup.repository.repository import Repository
from lunr.backup.save.parent import UNUSABLE
from lunr.client import Client
from lunr.client.errors import NotFound, WrongState
from lunr.common import ids
from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.backup import groups
from lunr.live.backup.groups import Group
from lunr.live.qemu.machine import Disk

logger = logging.getLogger(__name__)

#: Seconds between two signs of life. The service gives a save up after an hour without one.
RENEW = 60.0

#: The volume's id in QEMU's source of a disk that is a volume of lunr: in an URL (or in JSON,
#: the target), or in udev's name of a disk of the kernel's initiator.
_TARGET = re.compile(
    r"iqn\.\d{4}-\d\d\.[^:/\"]+:(?P<id>[A-Za-z0-9][A-Za-z0-9_-]{0,63}?)(?=[/\"]|-lun-\d+|$)"
)


class GroupRegistration:
    """The registration of a group that is being saved.

    Attributes:
        pending_deletion: the collections that the save must avoid.
        cancel: set when the service asks to stop.
    """

    def __init__(self, client: Client, group_id: str, report: dict[str, Any]) -> None:
        """Announce the group."""
        self._client, self._id, self._report = client, group_id, report
        self._over = threading.Event()
        self.cancel = threading.Event()
        self.progress = 0
        self.pending_deletion = tuple(self._send_report())

    def _send_report(self) -> Sequence[str]:
        answer = self._client.groups.put(
            self._id, status="SAVING", progress=self.progress, **self._report
        )
        if answer.cancel:
            self.cancel.set()
        return answer.condemned

    def _renew(self) -> None:
        while not self._over.wait(RENEW):
            try:
                self._send_report()
            except WrongState as error:  # it was deleted
                logger.warning("%s", error)
                self.cancel.set()
            except LunrError as error:
                logger.warning("The progress of the backup could not be reported: %s", error)

    def __enter__(self) -> GroupRegistration:
        threading.Thread(target=self._renew, daemon=True, name="announced").start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()


class Service:
    """An account of a lunr service."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: The account; its repository has the same name.
        self.account = client.account

    def volume_id(self, machine: str, disk: Disk) -> str:
        """The id of a disk's volume: one of the account's, or else an external volume.

        Ids are unique among all accounts, and many accounts have a machine `web`: so the id of an
        external volume ends in a hash of the account.

        Raises:
            errors of :mod:`lunr.client.errors`: the service does not answer.
        """
        match = _TARGET.search(disk.source)
        if match is not None:
            with contextlib.suppress(NotFound):
                return self._client.volumes.get(match["id"]).id
        return external_volume_id(self.account, groups.volume_id(machine, disk.name))

    def check_volume(self, volume_id: str) -> None:
        """Make sure that the volume of an option is the account's.

        Raises:
            errors of :mod:`lunr.client.errors`: it is not, or the service does not answer.
        """
        self._client.volumes.get(ids.check(volume_id, "--volume"))

    def announce(
        self,
        group_id: str,
        machine: str,
        created_at: str,
        backups: Sequence[dict[str, Any]],
    ) -> GroupRegistration:
        """Announce a group that is about to be saved; `backups` as in docs/api.md.

        Raises:
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        report = {"machine": machine, "created_at": created_at, "backups": backups}
        return GroupRegistration(self._client, group_id, report)

    def complete(self, repository: Repository, group: Group) -> None:
        """Report that `group` is in the store.

        Raises:
            errors.GroupDeleted: the group was deleted in the service; its remains are deleted.
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        frozen = {} if group.frozen is None else {"frozen": str(group.frozen)}
        try:
            self._client.groups.put(
                group.group_id,
                status="AVAILABLE",
                machine=group.machine,
                created_at=group.created_at,
                backups=list(_member_reports(repository, group)),
                metadata={"stall_seconds": f"{group.stall_seconds:.6f}", **frozen},
            )
        except (WrongState, BackupMissing) as error:
            # Its deletion may have ended, be under way, or not have begun.
            with contextlib.suppress(errors.GroupMissing):
                groups.delete(repository, group.group_id)
            raise errors.GroupDeleted(id=group.group_id) from error

    def abandon(self, group_id: str) -> None:
        """Report that a group failed; without the report the service drops it after an hour."""
        try:
            self.delete(group_id)
        except LunrError as error:
            logger.warning("The failure of the backup could not be reported: %s", error)

    def delete(self, group_id: str) -> bool:
        """Delete a group in the service and the store; return whether the service had it.

        Raises:
            errors of :mod:`lunr.client.errors`: it is in use, or the service does not answer.
        """
        try:
            self._client.groups.delete(group_id)
        except NotFound:
            return False
        return True

    def unprotected(self, group: Group) -> list[str]:
        """The backups of `group` that may be deleted or pruned.

        Raises:
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        backups = (self._client.backups.get(member.backup_id) for member in group.members)
        return [backup.id for backup in backups if not backup.protected]

    def protect(self, backup_ids: Iterable[str], value: bool) -> None:
        """Set whether these backups are protected from deletion and pruning.

        Raises:
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        for backup_id in backup_ids:
            self._client.backups.update(backup_id, protected=value)

    def create_missing(self, repository: Repository, machine: str) -> None:
        """Report the complete groups of `machine` that the service lacks; drop killed ones.

        Raises:
            errors of :mod:`lunr.client.errors`: the service does not answer.
        """
        known = {group.id: group.status for group in self._client.groups.list(machine=machine)}
        listed = set(groups.ids_of(repository, machine))
        listed.update(group_id for group_id, status in known.items() if status == "ERROR")
        for group_id in sorted(listed):
            status = known.get(group_id)
            if status in ("AVAILABLE", "DELETING"):
                continue
            try:
                self.complete(repository, groups.load(repository, group_id))
                logger.warning("The completion of %s is reported only now.", group_id)
            except errors.GroupDeleted:
                logger.warning("Deleted %s, which was deleted in the service.", group_id)
            except errors.GroupMissing:
                # Not a group that is SAVING: another process may back up a machine of that name.
                if status == "ERROR":
                    self.delete(group_id)
            except UNUSABLE as error:
                logger.warning("Group %s can't be read: %s", group_id, error)


def external_volume_id(account: str, name: str) -> str:
    """The id of the external volume `name` of an account."""
    mark = hashlib.blake2b(f"{account}/{name}".encode(), digest_size=4).hexdigest()
    return f"{name}-{mark}"


def _member_reports(repository: Repository, group: Group) -> Iterator[dict[str, Any]]:
    for member in group.members:
        root = repository.load_root(member.backup_id)
        did = root.statistics
        yield {
            "id": member.backup_id,
            "disk": member.disk,
            "volume_id": root.volume_id,
            "size_bytes": root.size_bytes,
            "parent_id": root.parent_id,
            "bytes_read": did.bytes_read,
            "bytes_stored": did.bytes_stored,
            "objects_stored": did.objects_stored,
            "metadata": {"way": member.way},
        }
