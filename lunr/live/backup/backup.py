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
from lunr.live.backup.abort_checks import AbortChecks, is_set, leaves_less, uses_more
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
    """How a virtual machine is backed up.

    Attributes:
        machine: what its backups are called by; None: its own name.
        disks: the names of those to back up; None: all.
        scratch: a folder with room for what the guest overwrites meanwhile.
        scratch_limit: bytes that it may take there; beyond, the backup is given up. 0: no limit.
        scratch_reserve: bytes that must stay free there; below, the backup is given up. None:
            :func:`lunr.live.backup.abort_checks.reserved`.
        agent: the socket of the guest's agent, to freeze file systems with; or None.
        concurrency: requests to the store at once.
        compression: blocks that do not shrink are stored as they are.
        progress: told what is done.
        cancel: set to give up within a second, with Cancelled.
        service: whom to tell of the group; None: the store alone knows.
        volumes: for the names of disks that are volumes of the service their ids, where QEMU
            does not tell.
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
    """What a disk's backup builds upon.

    Attributes:
        disk: which.
        base: the group since whose cut a bitmap has all changes, or None.
        parent_id: a backup to compare with, or None.
        reason: why there is no base; "" when there is.
    """

    disk: Disk
    base: str | None
    parent_id: str | None
    reason: str


def backup(repository: Repository, monitor: Monitor, options: Options) -> Group:
    """Back up all disks of the machine behind `monitor`, at one instant.

    All of them are backups then, or none is. Whatever happens, the guest goes on.

    Raises:
        errors.CannotBackUp: it can't be done with this machine as it is.
        errors.ExportLost: the guest overwrote more than there was room for, or QEMU ended.
        errors.FreezeFailed: the guest's agent does not say that it thawed.
        errors.DiskResized: a disk was resized meanwhile.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU does not do its part.
        engine errors of :func:`lunr.backup.save.save.save`.
    """
    with contextlib.ExitStack() as stack:
        agent = connected_agent(monitor, options.agent, stack)
        cleanup.recover(monitor, agent)
        return _backup(repository, monitor, options, agent)


def connected_agent(
    monitor: Monitor, path: Path | None, stack: contextlib.ExitStack
) -> Agent | None:
    """The agent at `path`, closed by `stack`; None when it does not answer.

    Raises:
        errors.FreezeFailed: it does not answer, and must: a killed backup may have frozen the
            guest.
    """
    if path is None:
        return None
    try:
        return stack.enter_context(contextlib.closing(Agent.open(path)))
    except errors.FreezeFailed as error:
        if cleanup.is_held(monitor):
            raise
        logger.warning("Going on without: %s", error)
        return None


def _backup(
    repository: Repository, monitor: Monitor, options: Options, agent: Agent | None
) -> Group:
    name = options.machine or machine.name_of(monitor)
    disks = machine.disks(monitor, options.disks)
    now = datetime.now(UTC)
    group_id = groups.new_id(name, now)
    for disk in disks:
        groups.backup_id(group_id, disk.name)  # refused now, not after the work
    volumes = _volumes(name, disks, options)
    if options.service is not None:
        options.service.make_up(repository, name)
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
            _tell(repository, options, group)
        except BaseException:
            _clear(monitor, guard, agent)
            _undo(repository, monitor, disks, group_id)
            if options.service is not None:
                options.service.abandon(group_id)
            raise
        _clear(monitor, guard, agent)
    _drop_bitmaps(monitor, disks, lambda since: since != group_id)
    return group


def _volumes(name: str, disks: Sequence[Disk], options: Options) -> dict[str, str]:
    """For each disk the id of the volume that it is.

    Raises:
        errors.CannotBackUp: a volume is named for a disk that is not there.
        errors of :mod:`lunr.client.errors`: a volume that is named is not the account's, or the
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


def _tell(repository: Repository, options: Options, group: Group) -> None:
    """Tell the service that `group` is complete.

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
        logger.warning("%s is complete, and the service does not know: %s", group.group_id, error)


def plan(repository: Repository, name: str, disks: Sequence[Disk]) -> list[Plan]:
    """What each of the `disks` of the machine `name` can build upon.

    Raises:
        StoreUnavailable, StoreRefused: the store does not tell.
    """
    known = _GroupCache(repository, name)
    plans = []
    for disk in disks:
        one = known.plan(disk)
        if one.reason and one.parent_id is not None:
            logger.warning("%s: all of it is read and compared: %s", disk.name, one.reason)
        plans.append(one)
    return plans


class _GroupCache:
    """The groups of a machine, each asked for once."""

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
        """Tell the service what is about to be saved."""
        if self.options.service is None:
            return None
        backups = [
            {
                "id": groups.backup_id(self.group_id, one.disk.name),
                "disk": one.disk.name,
                "volume_id": self.volumes[one.disk.name],
                "size_bytes": one.disk.size,
                "parent_id": one.parent_id,
            }
            for one in plans
        ]
        return self.options.service.announce(self.group_id, self.name, self._created_at, backups)

    def run(
        self,
        plans: Sequence[Plan],
        guard: Guard,
        announced: GroupRegistration | None,
    ) -> Group:
        disks = [one.disk for one in plans]
        machine_is = hardware.of(self.monitor)
        devices = {disk.name: hardware.device_of(self.monitor, disk) for disk in disks}
        bases = {one.disk.name: one.base for one in plans if one.base is not None}
        others = [disk for disk in disks if disk.name not in bases]
        bitmaps.put_marks(self.monitor, disks, self.group_id, fleecing.GRANULARITY)
        fleecing.begin_bitmaps(self.monitor, others, self.group_id)
        allocated = exports.survey(self.monitor, disks, [disk.name for disk in others])
        files = fleecing.put_filters(self.monitor, disks, self.options.scratch, self.held)
        self.watch.add(uses_more(files, self.options.scratch_limit))
        self.watch.add(leaves_less(files, self.options.scratch_reserve))
        self.watch.look()
        guard.check()
        stall, frozen = self._cut(disks, bases)
        logger.info("The guest stood still for %.1f ms.", stall * 1000)
        for disk in disks:
            if disk.name in bases:
                bitmaps.check(self.monitor, disk, bases[disk.name])
        members: list[Member] = []
        # Who knows what was written stores little: it is not worth a listing.
        like = groups.newest_of_others(self.repository, self.name) if others else []
        with exports.exported(self.monitor, disks, bases, allocated) as found:
            for number, (one, given) in enumerate(zip(plans, found, strict=True)):
                saved = [member.backup_id for member in members]
                members.append(self._save(one, given, announced, (*saved, *like)))
                bitmaps.check(self.monitor, one.disk, self.group_id)
                cleanup.clear(self.monitor, number)
                files[number].truncate(0)  # QEMU has let go of it: the room is free again
                if announced is not None:
                    announced.progress = 100 * (number + 1) // len(plans)
        group = Group(
            group_id=self.group_id,
            machine=self.name,
            created_at=self._created_at,
            stall_seconds=round(stall, 6),
            frozen=frozen,
            members=tuple(replace(member, device=devices[member.disk]) for member in members),
            hardware=machine_is,
        )
        groups.store(self.repository, group)
        return group

    def _cut(self, disks: Sequence[Disk], bases: Mapping[str, str]) -> tuple[float, int | None]:
        """Make the cut; the stall in seconds, and how many file systems were frozen.

        After an error the guest may be held: who handles it lets it go.
        """
        running = machine.is_running(self.monitor)
        frozen = None
        if running:  # in one that stands still no agent could answer
            cleanup.hold(self.monitor)
            frozen = None if self.agent is None else _freeze(self.agent)
        stall = fleecing.cut(self.monitor, disks, self.group_id, bases, running=running)
        if running:
            cleanup.let_go(self.monitor, self.agent)
        return stall, frozen

    @property
    def _created_at(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _save(
        self,
        one: Plan,
        given: exports.Exported,
        announced: GroupRegistration | None,
        like: tuple[str, ...],
    ) -> Member:
        disk, tell = one.disk.name, self.options.progress
        root = save(
            self.repository,
            given.source,
            Backup(
                backup_id=groups.backup_id(self.group_id, disk),
                volume_id=self.volumes[disk],
                created_at=self._created_at,
                parent_id=one.parent_id,
                like=like,
                pending_deletion=() if announced is None else announced.condemned,
                changed=given.changed,
                consistency_group=self.group_id,
            ),
            concurrency=self.options.concurrency,
            compression=self.options.compression,
            progress=None if tell is None else lambda done, total: tell(disk, done, total),
            cancel=self.watch.cancel,
        )
        return _member(one, given, root)


def _member(one: Plan, given: exports.Exported, root: Root) -> Member:
    way, reason = "incremental", one.reason
    if root.parent_id is None:
        way = "full"
        reason = reason or "its parent could not be used, see the log."
    elif given.changed is None:
        way = "compared"
    did = root.statistics
    changed = given.changed
    return Member(
        disk=one.disk.name,
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
    """How many file systems the agent froze; None when it did not."""
    try:
        return agent.freeze()
    except errors.FreezeFailed as error:
        logger.warning("Going on without: %s", error)
        return None


# --- afterwards ------------------------------------------------------------------------


def _clear(monitor: Monitor, guard: Guard, agent: Agent | None) -> None:
    """Leave the machine as it was; if that can't be, the guard goes on with it."""
    try:
        cleanup.settle(monitor, agent)
    except LunrError as error:
        logger.warning("The machine is not as it was, the guard is to see to it: %s", error)
    else:
        guard.release()


def _undo(repository: Repository, monitor: Monitor, disks: Sequence[Disk], group_id: str) -> None:
    """Leave nothing of a group that failed; what can't be removed now does no harm."""
    try:
        groups.discard(repository, group_id, [disk.name for disk in disks])
    except LunrError as error:
        logger.warning("Backups of disks of %s may be left in the store: %s", group_id, error)
    _drop_bitmaps(monitor, disks, lambda since: since == group_id)


def _drop_bitmaps(monitor: Monitor, disks: Sequence[Disk], doomed: Callable[[str], bool]) -> None:
    """Remove the bitmaps of `disks` that begin with groups that are `doomed`."""
    try:
        wanted = {disk.name for disk in disks}
        for disk in machine.disks_of(monitor):
            for name in disk.bitmaps if disk.name in wanted else ():
                since = name.removeprefix(names.SINCE).removeprefix(names.SIZE)
                if since != name and doomed(since):
                    cleanup.remove_bitmap(monitor, disk, name)
    except LunrError as error:  # it costs some memory, until the next backup
        logger.warning("Bitmaps of QEMU's are left: %s", error)
