"""A lunr service that knows of the groups: told before they are saved, and when they are complete.

Without it a group is known by the store alone. With it the backups are the account's like any
others, and the service's collections keep what is being saved. No announcement, no backup: a
store whose listings are behind could not tell the service's collector of us in time. What
could not be told afterwards is told before the next backup, from what the store has.
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

#: Seconds between two signs of life. The service gives up on us after an hour without.
RENEW = 60.0

#: The volume's id in what QEMU says of a disk that is one of lunr's: as an URL (or in JSON,
#: the target), or as udev names a disk of the kernel's initiator.
_TARGET = re.compile(
    r"iqn\.\d{4}-\d\d\.[^:/\"]+:(?P<id>[A-Za-z0-9][A-Za-z0-9_-]{0,63}?)(?=[/\"]|-lun-\d+|$)"
)


class GroupRegistration:
    """A group that the service knows we are saving.

    Attributes:
        condemned: collections that the engine must heed.
        cancel: set when somebody wants it to stop.
    """

    def __init__(self, client: Client, group_id: str, told: dict[str, Any]) -> None:
        """Announce it."""
        self._client, self._id, self._told = client, group_id, told
        self._over = threading.Event()
        self.cancel = threading.Event()
        self.progress = 0
        self.condemned = tuple(self._tell())

    def _tell(self) -> Sequence[str]:
        answer = self._client.groups.put(
            self._id, status="SAVING", progress=self.progress, **self._told
        )
        if answer.cancel:
            self.cancel.set()
        return answer.condemned

    def _renew(self) -> None:
        while not self._over.wait(RENEW):
            try:
                self._tell()
            except WrongState as error:  # deleted: nobody wants it
                logger.warning("%s", error)
                self.cancel.set()
            except LunrError as error:
                logger.warning("The service was not told that the backup goes on: %s", error)

    def __enter__(self) -> GroupRegistration:
        threading.Thread(target=self._renew, daemon=True, name="announced").start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()


class Service:
    """An account of a lunr service."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: Its repository has the same name.
        self.account = client.account

    def volume_id(self, machine: str, disk: Disk) -> str:
        """The volume that a disk is: of the account if it has it, else an external one.

        Ids are unique among all accounts, and many have a machine `web`: so theirs end in
        something of the account.

        Raises:
            errors of :mod:`lunr.client.errors`: the service does not answer.
        """
        found = _TARGET.search(disk.source)
        if found is not None:
            with contextlib.suppress(NotFound):
                return self._client.volumes.get(found["id"]).id
        return external_volume_id(self.account, groups.volume_id(machine, disk.name))

    def check_volume(self, volume_id: str) -> None:
        """Make sure that a volume that somebody named is the account's.

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
        """Tell that a group is about to be saved; `backups` as docs/api.md has them.

        Raises:
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        told = {"machine": machine, "created_at": created_at, "backups": backups}
        return GroupRegistration(self._client, group_id, told)

    def complete(self, repository: Repository, group: Group) -> None:
        """Tell that `group` is in the store.

        Raises:
            errors.GroupDeleted: the service does not want it any more; what was left is deleted.
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        frozen = {} if group.frozen is None else {"frozen": str(group.frozen)}
        try:
            self._client.groups.put(
                group.group_id,
                status="AVAILABLE",
                machine=group.machine,
                created_at=group.created_at,
                backups=list(_told(repository, group)),
                metadata={"stall_seconds": f"{group.stall_seconds:.6f}", **frozen},
            )
        except (WrongState, BackupMissing) as error:
            # Its deletion may be done with, or in the middle of it, or not have begun.
            with contextlib.suppress(errors.GroupMissing):
                groups.delete(repository, group.group_id)
            raise errors.GroupDeleted(id=group.group_id) from error

    def abandon(self, group_id: str) -> None:
        """Tell that nothing comes of a group; if that can't be told, it is forgotten in an hour."""
        try:
            self.delete(group_id)
        except LunrError as error:
            logger.warning("The service was not told that the backup failed: %s", error)

    def delete(self, group_id: str) -> bool:
        """Have a group deleted: its records, and what is in the store; whether there was one.

        Raises:
            errors of :mod:`lunr.client.errors`: something needs it, or the service does not
                answer.
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
        found = (self._client.backups.get(member.backup_id) for member in group.members)
        return [backup.id for backup in found if not backup.protected]

    def protect(self, backup_ids: Iterable[str], value: bool) -> None:
        """Let nobody delete or prune these backups, or take that back.

        Raises:
            errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
        """
        for backup_id in backup_ids:
            self._client.backups.update(backup_id, protected=value)

    def make_up(self, repository: Repository, machine: str) -> None:
        """Tell what could not be told before, of `machine`; forget what a killed backup left.

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
                logger.warning("The service is told only now of %s.", group_id)
            except errors.GroupDeleted:
                logger.warning("Deleted %s, which the service knows as deleted.", group_id)
            except errors.GroupMissing:
                # Not what is SAVING: another one may be at work on a machine of that name.
                if status == "ERROR":
                    self.delete(group_id)
            except UNUSABLE as error:
                logger.warning("Group %s can't be read: %s", group_id, error)


def external_volume_id(account: str, name: str) -> str:
    """The id of the external volume `name` of an account."""
    mark = hashlib.blake2b(f"{account}/{name}".encode(), digest_size=4).hexdigest()
    return f"{name}-{mark}"


def _told(repository: Repository, group: Group) -> Iterator[dict[str, Any]]:
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
