"""Exports by LIO, the target in the Linux kernel, through its configfs.

The kernel decides at login by the initiator's name and CHAP, and knows nothing
of addresses. So an export needs the initiator's name; where it has an address
too, every look at the target (:meth:`LioTarget.exports`, each second) cuts
sessions that come from elsewhere, though they know the secret. When there are to
be no more looks, such exports are closed for new logins (:meth:`LioTarget.close`).

Why configfs itself, and not rtslib-fb: that makes all names small and refuses
``_`` in them, so that volumes whose ids differ in case are one target and some
can't be exported; it fails on objects that are half made, which is what a
killed process leaves; and it keeps a list of the disks that is wrong as soon
as another process makes one.

The state is the kernel's alone: nothing of it is kept here.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lunr.common import concurrency, errors
from lunr.storage import system
from lunr.storage.targets import limits
from lunr.storage.targets.base import Export, Session, Target, TargetFailed, TargetUnavailable
from lunr.storage.targets.lio import tree as tree

_log = logging.getLogger(__name__)
T = TypeVar("T")

_MODULES = ("target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod")
#: The kernel's threads that receive commands and submit their I/O, one a connection.
_RECEIVER = "iscsi_trx"
#: Seconds that sessions which are just ending are given to be gone.
_END_TIMEOUT = 1.0


class NameNeeded(errors.LunrError):
    """Volume {id} can't be exported to an address alone: the kernel's target knows initiators by name; give the initiator's too."""  # noqa: E501

    code = "initiator_needed"
    status = 400


class LioTarget(Target):
    """LIO, listening on `portal` (ADDRESS:PORT); it exports volumes that live under `pool`.

    Raises:
        errors.ConfigError: `portal` is something else.
    """

    name = "lio"

    def __init__(self, portal: str, pool: Path) -> None:
        super().__init__()
        self._portal = _portal(portal)
        self._on_devices = pool.is_relative_to("/dev")
        self._limits = limits.Limits(lambda: limits.kernel_threads(_RECEIVER))
        #: By volumes: an export takes several steps that belong together, and they take as long
        #: as the volume's disk does.
        self._locks: dict[str, threading.Lock] = {}
        #: The volumes that had sessions of unknown address at the last look.
        self._doubtful: frozenset[str] = frozenset()

    def check(self) -> None:
        """Load the kernel's modules, and say what is missing."""
        if os.geteuid() != 0:
            raise _unusable("only root can change it: run lunr-storage as root")
        for module in _MODULES:
            if not Path("/sys/module", module).exists():
                try:
                    system.run(["modprobe", module])
                except errors.LunrError as error:
                    raise _unusable(f"the kernel's module {module} is missing: {error}") from error
        if not tree.ROOT.is_dir():
            where = tree.CONFIGFS
            raise _unusable(f"configfs is not mounted: mount -t configfs configfs {where}")
        try:
            tree.TARGETS.mkdir(exist_ok=True)
        except OSError as error:
            raise _unusable(str(error)) from error

    def limits_io(self) -> bool:
        """Only block devices have limits."""
        return self._on_devices and limits.available()

    def exports(self) -> Mapping[str, list[Session]]:
        """The exports of lunr's volumes, and who is logged in; strangers are cut."""
        seen = _do("be looked at", _look)
        doubtful = frozenset(one for one, (who, _) in seen.items() if _unknown(who))
        for volume_id, (who, demanded) in seen.items():
            if not demanded or all(session["ip"] == demanded for session in who):
                continue
            # One that is ending is still counted, but no more described.
            if _unknown(who) and volume_id not in self._doubtful:
                continue
            lock = self._alone_with(volume_id)
            if not lock.acquire(blocking=False):  # who changes the export sees to it
                continue
            try:
                _do("cut sessions", _cut, volume_id)
            finally:
                lock.release()
            _log.warning(
                "cut the sessions of volume %s, which only %s may use: %s",
                volume_id,
                demanded,
                ", ".join(f"{one['initiator']} from {one['ip'] or 'unknown'}" for one in who),
            )
            seen[volume_id] = ([], demanded)
        self._doubtful = doubtful
        try:
            self._limits.keep()
        except OSError as error:
            _log.error("I/O limits are not in force: %s", error)
        return {one: who for one, (who, _) in seen.items() if one not in self._half_made}

    def ensure(self, export: Export) -> None:
        """Make or correct what the kernel has, closed to those it was not for, and open it last."""
        if export.initiator is None:
            raise NameNeeded(id=export.volume_id)
        with self._alone_with(export.volume_id):
            self._ensure(export)

    def _ensure(self, export: Export) -> None:
        self._limits.check(export)
        with self._changing(export.volume_id):
            _do(f"export volume {export.volume_id}", tree.prepare, export, self._portal)
            _do(f"cut sessions of {export.volume_id}", _cut_strangers, export)
            self._limits.set(export)
            _do(f"export volume {export.volume_id}", tree.admit, export)

    def reopen(self, export: Export) -> None:
        """Make the export anew: the kernel keeps a file open as long as it has the disk."""
        with self._alone_with(export.volume_id):
            if export.volume_id in tree.disks():
                _do(f"reopen volume {export.volume_id}", _take_down, export.volume_id)
                self._ensure(export)

    def resize(self, volume_id: str) -> None:
        """Initiators see the new size when they look (``iscsiadm --rescan``); no session ends."""
        with self._alone_with(volume_id):
            _do(f"resize volume {volume_id}", _resize, volume_id)

    def remove(self, volume_id: str, force: bool = False) -> None:
        """Let nobody in anew, then remove all there is of the export."""
        with self._alone_with(volume_id):
            if not force:
                self._refuse_if_used(volume_id)
            path = _do(f"remove the export of volume {volume_id}", _take_down, volume_id)
            self._limits.clear(volume_id, path)
            self._half_made.discard(volume_id)

    def close(self) -> None:
        """Let nobody log in anew to whom an address is demanded: no look cuts strangers any more.

        `ensure` lets them in again.
        """
        for volume_id in tree.disks():
            with self._alone_with(volume_id):
                _do(f"close the export of volume {volume_id}", _close_if_addressed, volume_id)

    def _alone_with(self, volume_id: str) -> threading.Lock:
        return self._locks.setdefault(volume_id, threading.Lock())

    def _refuse_if_used(self, volume_id: str) -> None:
        """Close the export, or say who uses it and leave it as it was."""
        action = f"remove the export of volume {volume_id}"
        name = _do(action, _close, volume_id)
        who = None
        try:
            deadline = time.monotonic() + _END_TIMEOUT
            while (who := _do(action, _sessions, volume_id)) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            if who != []:  # also when nobody knows
                _do(action, _reopen, volume_id, name)
        if who:
            raise errors.InUse(
                kind="export of volume",
                id=volume_id,
                reason=f"{who[0]['initiator']} ({who[0]['ip']}) is logged in; log it out, or force",
            )


# --- what blocks, and so runs beside the other threads --------------------------------


def _do(action: str, function: Callable[..., T], *args: Any) -> T:
    """Do what may wait in the kernel, for sessions to end or disks to answer."""
    try:
        return concurrency.blocking(function, *args)
    except OSError as error:
        raise TargetFailed(action=action, reason=str(error)) from error


def _look() -> dict[str, tuple[list[Session], str]]:
    """Of each volume, who is logged in, and the address they must have."""
    seen = {}
    for volume_id, disk in tree.disks().items():
        try:
            who = tree.sessions(disk)
            acl = tree.acl_of(disk) if who else None
            seen[volume_id] = (who, "" if acl is None else tree.demanded(acl))
        except (FileNotFoundError, NotADirectoryError):  # it is just being removed
            continue
    return seen


def _unknown(who: list[Session]) -> bool:
    return any(not session["ip"] for session in who)


def _cut(volume_id: str) -> None:
    acl = _acl(volume_id)
    if acl is not None:
        tree.cut(acl)


def _cut_strangers(export: Export) -> None:
    disk = tree.disks()[export.volume_id]
    acl = tree.acl_of(disk)
    if acl is None or export.ip is None:
        return
    demanded = tree.demanded(acl)
    if any(session["ip"] != demanded for session in tree.sessions(disk)):
        tree.cut(acl)


def _resize(volume_id: str) -> None:
    disk = tree.disks().get(volume_id)
    if disk is not None:
        tree.resize(disk)


def _sessions(volume_id: str) -> list[Session]:
    disk = tree.disks().get(volume_id)
    return [] if disk is None else tree.sessions(disk)


def _close(volume_id: str) -> str:
    acl = _acl(volume_id)
    return "" if acl is None else tree.close(acl)


def _close_if_addressed(volume_id: str) -> None:
    acl = _acl(volume_id)
    if acl is not None and tree.demanded(acl):
        tree.close(acl)


def _reopen(volume_id: str, name: str) -> None:
    acl = _acl(volume_id)
    if acl is not None:
        tree.reopen(acl, name)


def _acl(volume_id: str) -> Path | None:
    disk = tree.disks().get(volume_id)
    return None if disk is None else tree.acl_of(disk)


def _take_down(volume_id: str) -> Path | None:
    """Remove the export; returns what the volume is."""
    disk = tree.disks().get(volume_id)
    path = None
    if disk is not None:
        path = tree.backing(disk)
        tree.take_down(disk)
    tree.sweep()
    return path


def _unusable(reason: str) -> TargetUnavailable:
    return TargetUnavailable(where="in the kernel (LIO)", reason=reason)


def _portal(text: str) -> str:
    """The name of the portal's folder.

    >>> _portal("10.0.0.2:3260"), _portal("[0:0::1]:3260")
    ('10.0.0.2:3260', '[::1]:3260')
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError as error:
        raise errors.ConfigError(
            reason=f"[lio] portal {text!r} is not ADDRESS:PORT: {error}"
        ) from error
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"
