"""Exports by tgtd, the user space iSCSI target (Debian package tgt).

Who may log in is tgtd's to decide, at the login itself. Two things of tgt
1.0.85 shape how it is told (usr/iscsi/iscsid.c, login_start):

* It admits an initiator whose address OR name is on the target's lists, and
  nobody when both are empty. To ask for address AND name, only the name is put
  on a list, and logins are redirected (RFC 7143, section 11.13.5) to the one
  address that is allowed: tgtd redirects every login but those that come from
  the very address it would redirect to (target_redirected in
  usr/iscsi/target.c). The port of the redirect is 9, where nothing listens.
* An initiator needs CHAP only if an account is bound. So whatever changes, a
  target is offline first, which refuses every login, and ready last.

tgtd ignores signals and keeps nothing: after a restart all has to be put back.

It asks for a volume's size when it opens it, and never again; and it opens it
anew only as another logical unit. Commands that come meanwhile would fail. So to
show a new size, connections are cut first: initiators keep their commands, log in
again, and send them then.

A command that comes while the target is offline gets no answer, ever, and QEMU waits
for it without a limit. A login that was under way when the target went offline ends
all the same, and its first command is lost. So whoever is logged in when a target is
ready again is cut off, and sends again what it had no answer to.

Block devices are opened with O_DIRECT: no write waits in the node's memory
unseen by snapshots, and all I/O is that of tgtd's own threads, as its limits
need (:mod:`lunr.storage.targets.limits`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lunr.common import errors
from lunr.storage.targets import limits
from lunr.storage.targets.base import (
    NAME,
    Export,
    Session,
    Target,
    TargetBusy,
    TargetFailed,
    volume_of,
)
from lunr.storage.targets.tgt.control import (
    Code,
    Mode,
    Op,
    Refused,
    TargetListing,
    Unit,
    daemon,
    parse_targets,
    parse_values,
    request,
)

_log = logging.getLogger(__name__)

#: Longest serial number and id that tgtd keeps (SCSI_SN_LEN, SCSI_ID_LEN); it cuts the rest off.
_SERIAL_LENGTH = 36
#: Seconds that a target is given to let go of its commands and connections.
_REMOVE_TIMEOUT = 20.0
_REDIRECT_PORT = "9"
_PLAIN_PATH = re.compile(r"[^,\x00-\x1f\x7f]+")


class TgtTarget(Target):
    """The tgtd whose control socket is `socket`; it exports volumes under one of `folders`.

    The first of these is the pool's.
    """

    name = "tgt"

    def __init__(self, socket: Path, *folders: Path) -> None:
        super().__init__()
        self._socket = socket
        self._folders = folders
        # tgtd does one request at a time; an export takes several that belong together.
        self._lock = threading.Lock()
        #: Of each target, what its account was made with; tgtd does not show secrets.
        self._secrets: dict[str, bytes] = {}
        self._limits = limits.Limits(lambda: [daemon(socket)])

    def check(self) -> None:
        """Ask tgtd for its state."""
        self._request(Mode.SYSTEM, Op.SHOW)

    def exports(self) -> Mapping[str, list[Session]]:
        """The targets of lunr's volumes; others of the same tgtd are not lunr's business."""
        there = {
            volume_of(target.iqn): [who for _, _, who in target.connections]
            for target in self._targets()
            if self._is_ours(target) and volume_of(target.iqn) not in self._half_made
        }
        try:
            self._limits.keep()
        except OSError as error:
            _log.error("I/O limits are not in force: %s", error)
        return there

    def limits_io(self) -> bool:
        """Only block devices have limits."""
        return self._folders[0].is_relative_to("/dev") and limits.available()

    def ensure(self, export: Export) -> None:
        """Make or correct the target, offline, and let initiators in last."""
        if not _PLAIN_PATH.fullmatch(str(export.path)):
            raise TargetFailed(action="export", reason=f"the path {export.path!s} has a comma")
        with self._lock:
            self._limits.check(export)
            self._limits.set(export)
            target = self._find(export.iqn)
            if target is not None and self._is_as_asked(target, export):
                self._half_made.discard(export.volume_id)
                return
            with self._changing(export.volume_id):
                self._ensure(target or self._create(export.iqn), export)

    def _ensure(self, target: TargetListing, export: Export) -> None:
        tid = target.tid
        self._set_state(tid, "offline")
        self._set_account(target, export)
        self._set_lun(target, export)
        self._set_access(target, export)
        self._set_ready(target)
        self._secrets[export.iqn] = _fingerprint(export)

    def resize(self, volume_id: str) -> None:
        """Open the volume anew; initiators lose their connection and log in again by themselves."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        with self._lock:
            for target in self._targets():
                if volume_of(target.iqn) == volume_id and self._is_ours(target):
                    self._reopen(target, volume_id, deadline)

    def reopen(self, export: Export) -> None:
        """As for :meth:`resize`."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        with self._lock:
            target = self._find(export.iqn)
            if target is not None:
                self._limits.check(export)
                self._reopen(target, export.volume_id, deadline, export)

    def remove(self, volume_id: str, force: bool = False) -> None:
        """Take the target offline, so that nobody comes anew, then remove it."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        with self._lock:
            for target in self._targets():
                if volume_of(target.iqn) == volume_id and self._is_ours(target):
                    self._remove(target, volume_id, force, deadline)
            self._limits.clear(volume_id)
            self._half_made.discard(volume_id)

    # --- parts of ensure ---------------------------------------------------------

    def _create(self, iqn: str) -> TargetListing:
        taken = {target.tid for target in self._targets()}
        tid = 1
        while True:
            while tid in taken:
                tid += 1
            try:
                self._request(Mode.TARGET, Op.NEW, f"targetname={iqn}", tid=tid)
            except Refused as error:
                if error.number != Code.TARGET_EXIST:
                    raise
                taken.add(tid)  # by another user of this tgtd, just now
            else:
                return TargetListing(tid, iqn)

    def _is_as_asked(self, target: TargetListing, export: Export) -> bool:
        return (
            target.state == "ready"
            and _volume(target) == {export.lun: str(export.path)}
            and target.accounts == [export.username]
            and target.acls == _acls(export)
            # None: it was made before this process. Names are as random as secrets, and
            # change with them; to be offline would swallow commands of those who are logged in.
            and self._secrets.get(export.iqn) in (None, _fingerprint(export))
            and self._redirect(target.tid) == _redirect(export)
        )

    def _set_account(self, target: TargetListing, export: Export) -> None:
        # Deleting an account takes it off every target; one of the same name
        # may have another secret.
        for name in {*target.accounts, export.username}:
            self._delete_account(name)
        self._request(Mode.ACCOUNT, Op.NEW, f"user={export.username},password={export.password}")
        self._request(Mode.ACCOUNT, Op.BIND, f"user={export.username}", tid=target.tid)

    def _set_lun(self, target: TargetListing, export: Export) -> None:
        there = _volume(target)
        for lun, path in there.items():
            if (lun, path) != (export.lun, str(export.path)):
                self._request(Mode.DEVICE, Op.DELETE, tid=target.tid, lun=lun)
        serial, scsi_id = _identity(export.serial)
        unit = Unit(str(export.path), serial, scsi_id)
        if there.get(export.lun) != unit.path:
            self._open(target.tid, export.lun, unit)
        self._identify(target.tid, export.lun, unit)

    def _open(self, tid: int, lun: int, unit: Unit) -> None:
        flags = ",bsoflags=direct" if Path(unit.path).is_block_device() else ""
        self._request(Mode.DEVICE, Op.NEW, f"path={unit.path}{flags}", tid=tid, lun=lun)

    def _identify(self, tid: int, lun: int, unit: Unit) -> None:
        self._request(
            Mode.DEVICE,
            Op.UPDATE,
            "targetOps vendor_id=LUNR,product_id=VOLUME,"
            f"scsi_sn={unit.serial},scsi_id={unit.scsi_id},",
            tid=tid,
            lun=lun,
        )

    def _set_access(self, target: TargetListing, export: Export) -> None:
        wanted = _acls(export)
        for acl in target.acls:
            if acl not in wanted:
                self._request(Mode.TARGET, Op.UNBIND, _acl(acl), tid=target.tid)
        for acl in wanted:
            if acl not in target.acls:
                self._request(Mode.TARGET, Op.BIND, _acl(acl), tid=target.tid)
        address = _redirect(export)
        for name, value in (
            ("RedirectAddress", address),
            ("RedirectPort", _REDIRECT_PORT),
            ("RedirectReason", "Temporary"),
        ):
            self._request(Mode.TARGET, Op.UPDATE, f"{name}={value}", tid=target.tid)

    def _redirect(self, tid: int) -> str:
        shown = parse_values(self._request(Mode.TARGET, Op.SHOW, tid=tid))
        return shown.get("RedirectAddress", "")

    # --- parts of resize ---------------------------------------------------------

    def _reopen(
        self, target: TargetListing, volume_id: str, deadline: float, export: Export | None = None
    ) -> None:
        for lun, unit in target.luns.items():
            if not lun:  # the controller
                continue
            self._set_state(target.tid, "offline")
            try:
                self._close(target, lun, volume_id, deadline)
            except errors.LunrError:
                self._set_ready(target)
                raise
            with self._changing(volume_id):
                if export is not None:
                    unit = replace(unit, path=str(export.path))
                    self._limits.set(export)
                self._open(target.tid, lun, unit)
                self._identify(target.tid, lun, unit)
                self._set_ready(target)

    def _close(self, target: TargetListing, lun: int, volume_id: str, deadline: float) -> None:
        pause = 0.02
        while True:
            self._disconnect_all(target.iqn)
            try:
                self._request(Mode.DEVICE, Op.DELETE, tid=target.tid, lun=lun)
            except Refused as error:
                # A command is still at work on the volume.
                if time.monotonic() > deadline:
                    raise TargetBusy(id=volume_id, reason=str(error)) from error
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            else:
                return

    def _disconnect_all(self, iqn: str) -> None:
        now = self._find(iqn)
        if now is not None:
            for sid, cid, _ in now.connections:
                self._disconnect(now.tid, sid, cid)

    # --- parts of remove ---------------------------------------------------------

    def _remove(self, target: TargetListing, volume_id: str, force: bool, deadline: float) -> None:
        if not force:
            self._refuse_if_used(target, volume_id)
        self._set_state(target.tid, "offline")
        # Looked at again: who logged in before the target was offline is in now.
        now = self._find(target.iqn)
        if now is None:
            return
        if not force:
            try:
                self._refuse_if_used(now, volume_id)
            except errors.InUse:
                # Without an account it is the rest of a remove that was killed.
                if now.accounts:
                    self._set_ready(now)
                raise
        for name in now.accounts:
            self._delete_account(name)
        self._secrets.pop(now.iqn, None)
        pause = 0.02
        while now is not None:
            for sid, cid, _ in now.connections:
                self._disconnect(now.tid, sid, cid)
            try:
                self._request(Mode.TARGET, Op.DELETE, tid=now.tid, force=True)
            except Refused as error:
                # A command is still at work on the volume, or a connection closes.
                if time.monotonic() > deadline:
                    raise TargetBusy(id=volume_id, reason=str(error)) from error
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            now = self._find(target.iqn)
        for path in _volume(target).values():
            self._limits.clear(volume_id, Path(path))

    @staticmethod
    def _refuse_if_used(target: TargetListing, volume_id: str) -> None:
        for _, _, who in target.connections:
            raise errors.InUse(
                kind="export of volume",
                id=volume_id,
                reason=f"{who['initiator']} ({who['ip']}) is logged in; log it out, or force",
            )

    def _delete_account(self, name: str) -> None:
        try:
            self._request(Mode.ACCOUNT, Op.DELETE, f"user={name}")
        except Refused as error:
            # What tgtd says of an account that is not there.
            if error.number != Code.INVALID_REQUEST:
                raise

    def _disconnect(self, tid: int, sid: int, cid: int) -> None:
        try:
            self._request(Mode.CONNECTION, Op.DELETE, tid=tid, sid=sid, cid=cid)
        except Refused as error:
            if error.number not in (Code.NO_SESSION, Code.NO_CONNECTION, Code.NO_TARGET):
                raise

    # --- asking tgtd -------------------------------------------------------------

    def _request(self, mode: Mode, op: Op, params: str = "", **numbers: int) -> str:
        return request(self._socket, mode, op, params, **numbers)  # type: ignore[arg-type]

    def _set_ready(self, target: TargetListing) -> None:
        """Let initiators in, and have those send again what came while it was offline."""
        self._set_state(target.tid, "ready")
        self._disconnect_all(target.iqn)

    def _set_state(self, tid: int, state: str) -> None:
        self._request(Mode.TARGET, Op.UPDATE, f"state={state}", tid=tid)

    def _targets(self) -> list[TargetListing]:
        return parse_targets(self._request(Mode.TARGET, Op.SHOW, tid=-1))

    def _find(self, iqn: str) -> TargetListing | None:
        return next((target for target in self._targets() if target.iqn == iqn), None)

    def _is_ours(self, target: TargetListing) -> bool:
        """Whether it exports a file of the pool, or its maker was killed before it got that far."""
        paths = [Path(path) for path in _volume(target).values()]
        if not paths:
            return target.state == "offline" or not (target.acls or target.accounts)
        return all(any(map(path.is_relative_to, self._folders)) for path in paths)


def _volume(target: TargetListing) -> dict[int, str]:
    """The paths behind its logical units but 0, the controller."""
    return {lun: unit.path for lun, unit in target.luns.items() if lun}


def _acls(export: Export) -> list[str]:
    """What goes on tgtd's list; with a name, the address is enforced by the redirect."""
    if export.initiator is not None:
        return [export.initiator]
    return [_address(export)]


def _acl(entry: str) -> str:
    """The parameter for an entry: tgtd has one list for addresses and one for names."""
    kind = "name" if NAME.fullmatch(entry) else "address"
    return f"initiator-{kind}={entry}"


def _address(export: Export) -> str:
    return str(ipaddress.ip_address(export.ip)) if export.ip is not None else ""


def _redirect(export: Export) -> str:
    """Where logins from elsewhere are sent; empty where the name or the address alone decides."""
    if export.initiator is None or export.ip is None:
        return ""
    address = _address(export)
    return f"[{address}]" if ":" in address else address


def _fingerprint(export: Export) -> bytes:
    return hashlib.sha256(f"{export.username},{export.password}".encode()).digest()


def _identity(serial: str) -> tuple[str, str]:
    """The serial number (VPD page 0x80) and the id (page 0x83) of a disk.

    tgtd makes the NAA designator, by which udev and multipath tell disks
    apart, of the id's leading hexadecimal digits, and stops at the first other
    character: for UUIDs that would be 28 bits. So the id is 32 such digits.

    >>> _identity("v1")
    ('v1', '3bfc269594ef649228e9a74bab00f042')
    """
    digest = hashlib.sha256(serial.encode()).hexdigest()
    return (serial if len(serial) <= _SERIAL_LENGTH else digest[:_SERIAL_LENGTH]), digest[:32]
