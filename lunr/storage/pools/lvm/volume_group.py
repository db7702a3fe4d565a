"""One volume group of LVM: what is in it, and the commands on it. Both LVM pools stand on it.

Its tags tell what a logical volume is to lunr (:mod:`lunr.storage.pools.lvm.logical_volumes`).
Names are made from ids for people; nothing but `name_for` goes by them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lunr.common import errors, ids, units
from lunr.storage import system
from lunr.storage.pools.base import PoolFull, PoolUnusable
from lunr.storage.pools.lvm.logical_volumes import (
    DISK_FIELDS,
    ROLE_TAG,
    VOLUME_FIELDS,
    LogicalVolume,
    PhysicalVolume,
    Role,
    parse_disks,
    parse_report,
    parse_volume,
)

_log = logging.getLogger(__name__)

#: LVM waits for its own lock while another command works on the group.
TIMEOUT = 120.0

#: Where agents meet, whatever their configuration says. Nobody but root may make files in it.
_LOCKS = Path("/run/lunr-locks")

#: lvm(8), "VALID NAMES"; it must leave room for a logical volume's name beside it.
_GROUP_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,31}")

#: DM_NAME_LEN of linux/dm-ioctl.h, less the end of the string.
_DM_NAME_MAX = 127
#: The longest that LVM puts behind a name for its inner devices: "_tmeta", "-tpool".
_DM_SUFFIX_MAX = 6

_NO_ROOM = re.compile(
    r"insufficient (free space|suitable allocatable extents|free extents)"
    r"|No specified PVs have space available|Insufficient suitable",
    re.IGNORECASE,
)


#: How names begin. LVM keeps those that begin with "snapshot" for itself.
_PREFIXES = {
    Role.VOLUME: "volume",
    Role.SNAPSHOT: "snap",
    Role.BACKUP: "backup",
    Role.BASELINE: "reference",
    Role.CLONE_METADATA: "filling",
    Role.BUILDING: "building",
}


class VolumeGroup:
    """The volume group `name`. Any thread may use it: LVM locks the group for each command."""

    #: Seconds that `lock` waits for commands of a process that was killed.
    patience = 20.0

    def __init__(self, name: str) -> None:
        if not _GROUP_NAME.fullmatch(name):
            raise errors.ConfigError(
                reason=f"lvm.group: {name!r} is not a volume group's name of at most 32 characters"
            )
        self.name = name
        self._lock: int | None = None
        self._extent = 0
        #: How many commands have changed the group: what was seen before another one is old.
        self.changes = 0
        #: What of LVM's configuration is other for lunr's commands.
        self._config = _CONFIG

    def __str__(self) -> str:
        return f"volume group {self.name}"

    def unusable(self, reason: str) -> PoolUnusable:
        """The error that the pool in this group can't be used, and why."""
        return PoolUnusable(place=self, reason=reason)

    # --- making sure that it is there ----------------------------------------------

    def check(self, how_to_make: str) -> int:
        """Make sure that the group is there and whole; returns the size of its extents in bytes.

        Args:
            how_to_make: the commands that make such a group, for the message.

        Raises:
            PoolUnusable: it is not; the message says what to do.
            CommandMissing: LVM is not installed.
        """
        rows = self.report("vgs", ["vg_extent_size", "vg_missing_pv_count"])
        if not rows:
            raise self.unusable(f"there is none; make it: {how_to_make}")
        if rows[0]["vg_missing_pv_count"] != "0":
            raise self.unusable(f"disks of it are missing; see: pvs -S vg_name={self.name}")
        self._extent = int(rows[0]["vg_extent_size"])
        return self._extent

    def hide_loops(self) -> None:
        """Have all commands see no loop device but those that can be written to now."""
        loops = Path("/sys/block").glob("loop*")
        own = [f"/dev/{loop.name}" for loop in loops if _is_writable(loop)]
        self._config = f"{_CONFIG} devices/filter={loop_filter(own)}"

    def rounded(self, size: int) -> int:
        """`size` bytes in whole extents, as LVM makes them. The group was checked."""
        return -(-size // self._extent) * self._extent

    def need_target(self, target: str, module: str) -> None:
        """Make sure that the kernel knows the device-mapper target `target`.

        Raises:
            PoolUnusable: it does not, and `module` can't be loaded.
        """
        try:
            # Tells the targets of what is loaded; those that are built in are among them.
            if target in _first_words(system.run(["dmsetup", "targets"]).stdout):
                return
            system.run(["modprobe", module])
        except system.CommandFailed as error:
            raise self.unusable(
                f"this kernel lacks the device-mapper target {target}: install a kernel that has "
                f"the module {module} ({error.fields['stderr']})"
            ) from error

    def lock(self) -> None:
        """Keep other agents away from the group, until `unlock` or the end of this process.

        Commands that change the group share the lock: an agent that is started
        after one was killed waits for those that the killed one left running.

        Raises:
            PoolUnusable: another has it.
        """
        path = _LOCKS / f"{self.name}.lock"
        try:
            _LOCKS.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self.unusable(f"its lock can't be made: {error}") from error
        deadline = time.monotonic() + self.patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise self.unusable("another process uses it") from error
                time.sleep(0.1)
            else:
                self._lock = lock
                return

    def unlock(self) -> None:
        """Let other agents have the group."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- what is there -------------------------------------------------------------

    def report(self, command: str, fields: Iterable[str]) -> list[dict[str, str]]:
        """What ``lvs``, ``vgs`` or ``pvs`` say of the group: a line each, values by field."""
        which = ("-o", ",".join(fields), "-S", f"vg_name={self.name}")
        argv = [command, *_REPORT, "--config", self._config, *which]
        return parse_report(system.run(argv, timeout=TIMEOUT).stdout)

    def volumes(self) -> list[LogicalVolume]:
        """The logical volumes, also those that are not lunr's; not LVM's inner ones."""
        return [parse_volume(row) for row in self.report("lvs", VOLUME_FIELDS)]

    def disks(self) -> list[PhysicalVolume]:
        """The physical volumes."""
        return parse_disks(self.report("pvs", DISK_FIELDS), self._extent)

    def path(self, name: str) -> Path:
        """The device of the logical volume `name`, where udev or LVM itself makes it."""
        return Path("/dev") / self.name / name

    def dm_name(self, name: str) -> str:
        """What device-mapper calls the logical volume `name`."""
        return f"{self.name.replace('-', '--')}-{name.replace('-', '--')}"

    # --- changes -------------------------------------------------------------------

    def run(
        self, command: str, *words: str | os.PathLike[str], timeout: float = TIMEOUT
    ) -> system.Result:
        """Run a command of LVM that changes the group; it asks nothing (``-y``).

        Raises:
            PoolFull: the group has no room for it.
            CommandFailed: it did not work for another reason.
            CommandTimeout: it was killed; what it had suspended goes on, if that can be.
        """
        try:
            return self._run(command, *words, timeout=timeout)
        except system.CommandTimeout as error:
            if not isinstance(error, system.CommandStuck):  # that one has the group's lock still
                self._wake_all()
            raise
        except system.CommandFailed as error:
            if _NO_ROOM.search(str(error.fields["stderr"])):
                tags = {str(word)[1:] for word in words if str(word).startswith("@")}
                disks = [disk for disk in self.disks() if disk.allocatable and tags <= disk.tags]
                free = sum(disk.free for disk in disks)
                raise PoolFull(place=self, free=units.human(free)) from error
            raise

    def _run(self, command: str, *words: str | os.PathLike[str], timeout: float) -> system.Result:
        shared = [] if self._lock is None else [self._lock]
        argv = [command, "-y", "-qq", "--config", self._config, *words]
        try:
            return system.run(argv, timeout=timeout, inherit=shared)
        finally:
            self.changes += 1

    def full_name(self, name: str) -> str:
        """``GROUP/NAME``, as most commands want it."""
        return f"{self.name}/{name}"

    def activate(self, names: Iterable[str]) -> None:
        """Make the devices of logical volumes, of snapshots with the skip flag (``-K``) too."""
        if names := [self.full_name(name) for name in names]:
            self.run("lvchange", "-ay", "-K", *names)

    def finish(self, lv: LogicalVolume) -> None:
        """Do what a killed LVM did not: it knows `lv`, the kernel may not yet."""
        if not lv.active:
            self.activate([lv.name])

    def wake(self, lvs: Iterable[LogicalVolume]) -> None:
        """Let those go on that a killed LVM left suspended: their I/O would wait for ever.

        One that lives holds the group's lock meanwhile, and the look at `lvs` waited for that.
        """
        for lv in lvs:
            if lv.suspended:
                _log.warning("%s was left suspended; it goes on", lv.name)
                self._run("lvchange", "--refresh", self.full_name(lv.name), timeout=TIMEOUT)

    def _wake_all(self) -> None:
        try:
            self.wake(lv for lv in self.volumes() if lv.role)
        except errors.LunrError as error:  # whoever looks at the group next tries it again
            _log.error("%s: what may be suspended can't be seen to: %s", self, error)

    def deactivate(self, name: str) -> None:
        """Remove the devices of a logical volume and of its snapshots.

        Raises:
            CommandFailed: one is open; LVM tried for some seconds.
        """
        self.run("lvchange", "-an", self.full_name(name))

    def retag(self, lv: LogicalVolume, role: Role) -> None:
        """Give `lv` another role, in one step."""
        old = [word for tag in lv.tags if tag.startswith(ROLE_TAG) for word in ("--deltag", tag)]
        self.run("lvchange", *old, "--addtag", f"{ROLE_TAG}{role}", self.full_name(lv.name))

    def convert(self, lv: LogicalVolume, role: Role) -> None:
        """Give `lv` another role, in one step, and then the name that goes with it.

        Run again after it was killed between the two, it does what is missing.
        """
        if lv.role is not role:
            self.retag(lv, role)
        if lv.name != (name := self.name_for(role, lv.id)):
            self.rename(lv.name, name)

    def rename(self, old: str, new: str) -> None:
        """Rename a logical volume, active or not."""
        self.run("lvrename", self.name, old, new)

    def extend(self, name: str, size: int, *where: str) -> None:
        """Make a logical volume, or a snapshot's COW area, `size` bytes large.

        Args:
            name: the logical volume, which may be open.
            size: bytes.
            where: the disks to take them from, or ``@TAG``; none: any.

        Raises:
            PoolFull: there is no room.
        """
        self.run("lvextend", "-L", f"{size}b", self.full_name(name), *where)

    def shrink(self, name: str, size: int) -> None:
        """Free what is past `size` bytes, in whole extents, of a logical volume that is larger."""
        self.run("lvreduce", "-f", "-L", f"{self.rounded(size)}b", self.full_name(name))

    def split(self, name: str) -> None:
        """Let a dm-snapshot's COW area be a logical volume of its own, and of no snapshot."""
        self.run("lvconvert", "--splitsnapshot", self.full_name(name))

    def remove(self, name: str) -> None:
        """Remove a logical volume, **with all snapshots** that dm-snapshot keeps of it."""
        self.run("lvremove", "-f", self.full_name(name))

    def clone_name(self, volume_id: str) -> str:
        """What device-mapper calls the device that a volume is filled through.

        As LVM's own inner devices it has the volume's name and a word of at most 6 letters.
        """
        return f"{self.dm_name(self.name_for(Role.VOLUME, volume_id))}-clone"

    def name_for(self, role: Role, id_: str) -> str:
        """The name of the logical volume for a record.

        It shows the id, but where LVM could not take that: underscores spell
        suffixes it keeps for itself, and device-mapper, where hyphens are
        doubled, ends names at 127 bytes. The dot then tells it from every id.
        """
        name = f"{_PREFIXES[role]}-{ids.check(id_)}"
        if "_" in id_ or len(self.dm_name(name)) + _DM_SUFFIX_MAX > _DM_NAME_MAX:
            digest = hashlib.blake2b(id_.encode(), digest_size=16).hexdigest()
            return f"{_PREFIXES[role]}-.{digest}"
        return name


@contextlib.contextmanager
def translated(kind: str, id_: str) -> Iterator[None]:
    """Say LVM's "in use" as errors.InUse of the record `id_`."""
    try:
        yield
    except system.CommandFailed as error:
        if " in use." in str(error.fields["stderr"]):
            raise errors.InUse(kind=kind, id=id_, reason="its device is open") from error
        raise


# --- what the kernel and LVM say -----------------------------------------------------------------

#: What dmsetup says of a device that goes while it looks, and how often it is asked in all.
_GONE, _STATUS_TRIES = "Device does not exist", 5
_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")
#: For every command. Thin metadata that the kernel took for damaged and thin_check finds whole can
#: be written again; LVM itself, by default, leaves them read-only for ever.
_CONFIG = 'report/time_format="%s" global/thin_check_options=["-q","--clear-needs-check-flag"]'


def statuses(target: str) -> str:
    """What device-mapper says of all devices on this machine with that target, a line each.

    It asks of one after the other, and fails when one goes meanwhile: then it is asked again.

    Raises:
        CommandFailed, CommandTimeout: it does not tell.
    """
    argv = ["dmsetup", "status", "--target", target]
    for _ in range(_STATUS_TRIES - 1):
        try:
            return system.run(argv).stdout
        except system.CommandFailed as error:
            if _GONE not in str(error.fields["stderr"]):
                raise
    return system.run(argv).stdout


def loop_filter(own: Iterable[str]) -> str:
    """The value of LVM's ``devices/filter`` that hides all loop devices but `own`.

    >>> loop_filter(["/dev/loop7"])
    '["a|^/dev/loop7$|","r|^/dev/loop|"]'
    """
    rules = [*(f"a|^{device}$|" for device in own), "r|^/dev/loop|"]
    return "[" + ",".join(f'"{rule}"' for rule in rules) + "]"


def _is_writable(loop: Path) -> bool:
    return (loop / "loop/backing_file").exists() and (loop / "ro").read_text().strip() == "0"


def _first_words(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line.strip()}
