"""One backup of a running virtual machine, from the cut to the group's record."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lunr.backup.format.blocks import Compression
from lunr.backup.format.roots import Root
from lunr.backup.repository.repository import Repository
from lunr.backup.save.parent import UNUSABLE
from lunr.backup.save.save import Backup, save
from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.backup import groups
from lunr.live.backup.abort_checks import AbortChecks, is_set, space_left_below, space_used_above
from lunr.live.backup.announcements import GroupRegistration, Service
from lunr.live.backup.groups import Group, Member
from lunr.live.qemu import bitmaps, cleanup, exports, fleecing, hardware, machine, names
from lunr.live.qemu.guard import Guard
from lunr.live.qemu.guest_agent import Agent
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: Called with the disk's name, the bytes done and the bytes in all; from any thread.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """The options of a live backup.

    Attributes:
        machine: the machine's name in ids; None: its own name.
        disks: the names of the disks to back up; None: all.
        scratch: a folder with room for the data that the guest overwrites during the backup.
        scratch_limit: the most bytes that it may take there; above, the backup is given up. 0: no
            limit.
        scratch_reserve: bytes that must stay free there; below, the backup is given up. None:
            :func:`lunr.live.backup.abort_checks.reserved`.
        agent: the socket of the guest's agent, which freezes file systems; or None.
        concurrency: requests to the store at once.
        compression: blocks that do not shrink are stored as they are.
        progress: called with the disk's name, and the bytes done and in all.
        cancel: set to give up within a second, with Cancelled.
        service: the service that registers the group; None: the group is only in the store.
        volumes: the ids of volumes of the service by the names of the disks, where QEMU does not
            give them.
    """

    machine: str | None = None
    disks: Sequence[str] | None = None
    scratch: Path = Path("/var/tmp")  # noqa: S108 - the files there have no names
    scratch_limit: int = 0
    scratch_reserve: int | None = None
    agent: Path | None = None
    concurrency: int = 4
    compression: Compression = Compression.ZSTD
    progress: Progress | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    service: Service | None = None
    volumes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The base and parent of a disk's backup.

    Attributes:
        disk: the disk.
        base: the group since whose cut a bitmap has all changes, or None.
        parent_id: a backup to compare with, or None.
        reason: why there is no base; "" if there is one.
    """

    disk: Disk
    base: str | None
    parent_id: str | None
    reason: str


def backup(repository: Repository, monitor: Monitor, options: Options) -> Group:
    """Back up all disks of the machine behind `monitor`, at one instant.

    The result is a backup of every disk, or none. The guest goes on in any case.

    Raises:
        errors.CannotBackUp: this machine can't be backed up as it is.
        errors.ExportLost: the guest overwrote more than there was room for, or QEMU ended.
        errors.FreezeFailed: the guest's agent does not confirm that it thawed.
        errors.DiskResized: a disk was resized meanwhile.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU refuses or does not answer.
        engine errors of :func:`lunr.backup.save.save.save`.
    """
    with contextlib.ExitStack() as stack:
        agent = connected_agent(monitor, options.agent, stack)
        cleanup.recover(monitor, agent)
        return _backup(repository, monitor, options, agent)


def connected_agent(
    monitor: Monitor, path: Path | None, stack: contextlib.ExitStack
) -> Agent | None:
    """The agent at `path`, closed by `stack`; None if it does not answer.

    Raises:
        errors.FreezeFailed: it does not answer, but a killed backup may have frozen the guest.
    """
    if path is None:
        return None
    try:
        return stack.enter_context(contextlib.closing(Agent.open(path)))
    except errors.FreezeFailed as error:
        if cleanup.is_held(monitor):
            raise
        logger.warning("The backup goes on without the agent: %s", error)
        return None


def _backup(
    repository: Repository, monitor: Monitor, options: Options, agent: Agent | None
) -> Group:
    name = options.machine or machine.name_of(monitor)
    disks = machine.disks(monitor, options.disks)
    now = datetime.now(UTC)
    group_id = groups.new_id(name, now)
    for disk in disks:
        groups.backup_id(group_id, disk.name)  # raises for a bad name before the work
    volumes = _volumes(name, disks, options)
    if options.service is not None:
        options.service.create_missing(repository, name)
    plans = plan(repository, name, disks)
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(Guard(monitor, agent))
        watch = AbortChecks(is_set(options.cancel))
        run = _Run(repository, monitor, options, name, group_id, now, volumes, watch, stack, agent)
        announced = run.announce(plans)
        if announced is not None:
            stack.enter_context(announced)
            watch.add(is_set(announced.cancel))
        try:
            with watch.watching():
                group = run.run(plans, guard, announced)
            _report_complete(repository, options, group)
        except BaseException:
            _restore_machine(monitor, guard, agent)
            _discard_group(repository, monitor, disks, group_id)
            if options.service is not None:
                options.service.abandon(group_id)
            raise
        _restore_machine(monitor, guard, agent)
    _drop_bitmaps(monitor, disks, lambda since: since != group_id)
    return group


def _volumes(name: str, disks: Sequence[Disk], options: Options) -> dict[str, str]:
    """The ids of the disks' volumes, by the disks' names.

    Raises:
        errors.CannotBackUp: an option gives the volume of a disk that does not exist.
        errors of :mod:`lunr.client.errors`: the volume of an option is not the account's, or the
            service does not answer.
    """
    names = [disk.name for disk in disks]
    if unknown := sorted(options.volumes.keys() - set(names)):
        raise errors.CannotBackUp(
            reason=f"it has no disk {unknown[0]}; it has: {', '.join(names)}."
        )
    service = options.service
    if service is None:
        return {name_: groups.volume_id(name, name_) for name_ in names}
    for volume_id in options.volumes.values():
        service.check_volume(volume_id)
    return {
        disk.name: options.volumes.get(disk.name) or service.volume_id(name, disk) for disk in disks
    }


def _report_complete(repository: Repository, options: Options, group: Group) -> None:
    """Report to the service that `group` is complete.

    Raises:
        errors.GroupDeleted: it was deleted meanwhile.
    """
    if options.service is None:
        return
    try:
        options.service.complete(repository, group)
    except errors.GroupDeleted:
        raise
    except LunrError as error:
        logger.warning("The completion of %s could not be reported: %s", group.group_id, error)


def plan(repository: Repository, name: str, disks: Sequence[Disk]) -> list[Plan]:
    """The plans of the `disks` of the machine `name`.

    Raises:
        StoreUnavailable, StoreRefused: the store can't be read.
    """
    known = _GroupCache(repository, name)
    plans = []
    for disk in disks:
        disk_plan = known.plan(disk)
        if disk_plan.reason and disk_plan.parent_id is not None:
            logger.warning(
                "Disk %s is read and compared as a whole: %s", disk.name, disk_plan.reason
            )
        plans.append(disk_plan)
    return plans


class _GroupCache:
    """The groups of a machine, each loaded once."""

    def __init__(self, repository: Repository, name: str) -> None:
        self._repository = repository
        self._name = name
        self._loaded: dict[str, Group | None] = {}
        self._listed: list[Group] | None = None

    def plan(self, disk: Disk) -> Plan:
        reason = "QEMU has no bitmap of it (a new disk, or QEMU was started again)."
        for name, bitmap in sorted(disk.bitmaps.items(), reverse=True):
            if not name.startswith(names.SINCE):
                continue
            base = name.removeprefix(names.SINCE)
            group = self._load(base)
            member = None if group is None else group.member(disk.name)
            if member is None or (group is not None and group.machine != self._name):
                reason = "the backup that QEMU's bitmap begins with is not in the store."
            elif bitmap.get("inconsistent") or not bitmap["recording"]:
                reason = "QEMU's bitmap has missed changes."
            elif member.size_bytes != disk.size or not bitmaps.is_whole(disk.bitmaps, base):
                reason = "it was resized."
            else:
                return Plan(disk, base, member.backup_id, "")
        parent = self._latest(disk)
        if parent is None:
            reason = "it is the first."
        return Plan(disk, None, parent, reason)

    def _load(self, group_id: str) -> Group | None:
        if group_id not in self._loaded:
            self._loaded[group_id] = None
            try:
                self._loaded[group_id] = groups.load(self._repository, group_id)
            except (errors.GroupMissing, *UNUSABLE) as error:
                logger.warning("%s", error)
        return self._loaded[group_id]

    def _latest(self, disk: Disk) -> str | None:
        if self._listed is None:
            self._listed = groups.listed(self._repository, self._name)
        members = (group.member(disk.name) for group in self._listed)
        return next((member.backup_id for member in members if member), None)


@dataclass(frozen=True)
class _Run:
    repository: Repository
    monitor: Monitor
    options: Options
    name: str
    group_id: str
    now: datetime
    volumes: Mapping[str, str]
    watch: AbortChecks
    held: contextlib.ExitStack
    agent: Agent | None

    def announce(self, plans: Sequence[Plan]) -> GroupRegistration | None:
        """Announce the group to the service, if there is one."""
        if self.options.service is None:
            return None
        backups = [
            {
                "id": groups.backup_id(self.group_id, disk_plan.disk.name),
                "disk": disk_plan.disk.name,
                "volume_id": self.volumes[disk_plan.disk.name],
                "size_bytes": disk_plan.disk.size,
                "parent_id": disk_plan.parent_id,
            }
            for disk_plan in plans
        ]
        return self.options.service.announce(self.group_id, self.name, self._created_at, backups)

    def run(
        self,
        plans: Sequence[Plan],
        guard: Guard,
        announced: GroupRegistration | None,
    ) -> Group:
        disks = [disk_plan.disk for disk_plan in plans]
        machine_hardware = hardware.read_hardware(self.monitor)
        devices = {disk.name: hardware.device_of(self.monitor, disk) for disk in disks}
        bases = {
            disk_plan.disk.name: disk_plan.base for disk_plan in plans if disk_plan.base is not None
        }
        others = [disk for disk in disks if disk.name not in bases]
        bitmaps.put_marks(self.monitor, disks, self.group_id, fleecing.GRANULARITY)
        fleecing.begin_bitmaps(self.monitor, others, self.group_id)
        allocated = exports.survey(self.monitor, disks, [disk.name for disk in others])
        files = fleecing.put_filters(self.monitor, disks, self.options.scratch, self.held)
        self.watch.add(space_used_above(files, self.options.scratch_limit))
        self.watch.add(space_left_below(files, self.options.scratch_reserve))
        self.watch.check_now()
        guard.check()
        stall, frozen = self._cut(disks, bases)
        logger.info("The guest stood still for %.1f ms.", stall * 1000)
        for disk in disks:
            if disk.name in bases:
                bitmaps.check(self.monitor, disk, bases[disk.name])
        members: list[Member] = []
        # An incremental backup stores little: dedup candidates are not worth a listing.
        like = groups.newest_of_others(self.repository, self.name) if others else []
        with exports.exported(self.monitor, disks, bases, allocated) as exported:
            for number, (disk_plan, export) in enumerate(zip(plans, exported, strict=True)):
                saved = [member.backup_id for member in members]
                members.append(self._save(disk_plan, export, announced, (*saved, *like)))
                bitmaps.check(self.monitor, disk_plan.disk, self.group_id)
                cleanup.clear(self.monitor, number)
                files[number].truncate(0)  # QEMU has closed it: free its room
                if announced is not None:
                    announced.progress = 100 * (number + 1) // len(plans)
        group = Group(
            group_id=self.group_id,
            machine=self.name,
            created_at=self._created_at,
            stall_seconds=round(stall, 6),
            frozen=frozen,
            members=tuple(replace(member, device=devices[member.disk]) for member in members),
            hardware=machine_hardware,
        )
        groups.store(self.repository, group)
        return group

    def _cut(self, disks: Sequence[Disk], bases: Mapping[str, str]) -> tuple[float, int | None]:
        """Make the cut; return the stall in seconds, and how many file systems were frozen.

        After an error the guest may be held: the caller must release it.
        """
        running = machine.is_running(self.monitor)
        frozen = None
        if running:  # in a stopped guest no agent answers
            cleanup.note_held(self.monitor)
            frozen = None if self.agent is None else _freeze(self.agent)
        stall = fleecing.cut(self.monitor, disks, self.group_id, bases, running=running)
        if running:
            cleanup.release_guest(self.monitor, self.agent)
        return stall, frozen

    @property
    def _created_at(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _save(
        self,
        disk_plan: Plan,
        export: exports.Exported,
        announced: GroupRegistration | None,
        like: tuple[str, ...],
    ) -> Member:
        disk, progress = disk_plan.disk.name, self.options.progress
        root = save(
            self.repository,
            export.source,
            Backup(
                backup_id=groups.backup_id(self.group_id, disk),
                volume_id=self.volumes[disk],
                created_at=self._created_at,
                parent_id=disk_plan.parent_id,
                like=like,
                pending_deletion=() if announced is None else announced.pending_deletion,
                changed=export.changed,
                consistency_group=self.group_id,
            ),
            concurrency=self.options.concurrency,
            compression=self.options.compression,
            progress=None if progress is None else lambda done, total: progress(disk, done, total),
            cancel=self.watch.cancel,
        )
        return _member(disk_plan, export, root)


def _member(disk_plan: Plan, export: exports.Exported, root: Root) -> Member:
    way, reason = "incremental", disk_plan.reason
    if root.parent_id is None:
        way = "full"
        reason = reason or "its parent could not be used, see the log."
    elif export.changed is None:
        way = "compared"
    did = root.statistics
    changed = export.changed
    return Member(
        disk=disk_plan.disk.name,
        backup_id=root.backup_id,
        size_bytes=root.size_bytes,
        way=way,
        reason=reason,
        changed_bytes=None if changed is None else sum(end - start for start, end in changed),
        bytes_read=did.bytes_read,
        bytes_stored=did.bytes_stored,
        seconds=did.seconds,
    )


def _freeze(agent: Agent) -> int | None:
    """Freeze the file systems and return their number; None if that failed."""
    try:
        return agent.freeze()
    except errors.FreezeFailed as error:
        logger.warning("The backup goes on without a freeze: %s", error)
        return None


# --- afterwards ------------------------------------------------------------------------


def _restore_machine(monitor: Monitor, guard: Guard, agent: Agent | None) -> None:
    """Restore the machine; if that fails, the guard goes on with it."""
    try:
        cleanup.restore_machine(monitor, agent)
    except LunrError as error:
        logger.warning("The machine is not restored, the guard tries again: %s", error)
    else:
        guard.release()


def _discard_group(
    repository: Repository, monitor: Monitor, disks: Sequence[Disk], group_id: str
) -> None:
    """Delete the backups and bitmaps of a failed group; remains do no harm."""
    try:
        groups.discard(repository, group_id, [disk.name for disk in disks])
    except LunrError as error:
        logger.warning("Backups of disks of %s may be left in the store: %s", group_id, error)
    _drop_bitmaps(monitor, disks, lambda since: since == group_id)


def _drop_bitmaps(monitor: Monitor, disks: Sequence[Disk], doomed: Callable[[str], bool]) -> None:
    """Remove the bitmaps of `disks` since groups that are `doomed`."""
    try:
        disk_names = {disk.name for disk in disks}
        for disk in machine.disks_of(monitor):
            for name in disk.bitmaps if disk.name in disk_names else ():
                since = name.removeprefix(names.SINCE).removeprefix(names.SIZE)
                if since != name and doomed(since):
                    cleanup.remove_bitmap(monitor, disk, name)
    except LunrError as error:  # it costs some memory, until the next backup
        logger.warning("Bitmaps could not be removed from QEMU: %s", error)
