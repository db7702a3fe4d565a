"""tgtd's control socket: the protocol that tgtadm speaks, spoken directly.

A call takes well under a millisecond where starting tgtadm takes tens of them,
and CHAP secrets do not show in the list of processes. The layout is that of
``struct tgtadm_req`` and ``struct tgtadm_rsp`` in usr/tgtadm.h of tgt 1.0.85,
the errors and numbers those of usr/tgtadm_error.h and usr/tgtadm.h.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from lunr.storage.targets.base import Session, TargetFailed, TargetUnavailable

#: mode, op, lld, len, tid, sid, lun, cid, host_no, device_type, ac_dir, pack, force
_REQUEST = struct.Struct("=II64sIiQQIIIIII")
#: err, len
_RESPONSE = struct.Struct("=II")

#: struct ucred of unix(7): pid, uid, gid
_CREDENTIALS = struct.Struct("=iII")

_TIMEOUT = 10.0
#: More than any number of targets can say; a broken answer must not fill the memory.
_MAX_ANSWER = 256 << 20


class Mode(IntEnum):
    """What a request is about."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    CONNECTION = 6
    ACCOUNT = 7


class Op(IntEnum):
    """What is to be done with it."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Code(IntEnum):
    """The errors of tgtd that are told apart here."""

    NO_TARGET = 4
    NO_SESSION = 6
    NO_CONNECTION = 7
    TARGET_EXIST = 8
    INVALID_REQUEST = 15


_MEANING = {
    1: "unknown error",
    2: "out of memory",
    3: "can't find the driver",
    4: "can't find the target",
    5: "can't find the logical unit",
    6: "can't find the session",
    7: "can't find the connection",
    8: "this target already exists",
    9: "this logical unit number already exists",
    10: "this access control rule already exists",
    11: "this access control rule does not exist",
    12: "this account already exists",
    13: "can't find the account",
    14: "too many accounts",
    15: "invalid request",
    16: "this target already has an outgoing account",
    17: "this target is still active",
    18: "this logical unit is still active",
    19: "this operation isn't supported",
    20: "unknown parameter",
    21: "this device has Prevent Removal set",
}


class Refused(TargetFailed):
    """The iSCSI target refused to {action}: {reason}"""

    @property
    def number(self) -> int:
        """tgtd's number of the error, one of :class:`Code` or another."""
        return int(self.fields["number"])


def request(
    path: Path,
    mode: Mode,
    op: Op,
    params: str = "",
    *,
    tid: int = 0,
    lun: int = 0,
    sid: int = 0,
    cid: int = 0,
    force: bool = False,
) -> str:
    """Ask the tgtd behind the socket `path` and return its answer's text.

    Raises:
        TargetUnavailable: nobody answers.
        Refused: tgtd answered with an error.
    """
    body = params.encode() + b"\0" if params else b""
    head = _head(mode, op, len(body), tid, sid, lun, cid, force)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(path))
            error, text = _exchange(sock, head + body)
    except OSError as error_:
        raise TargetUnavailable(where=path, reason=str(error_)) from error_
    if error:
        # Never `params`: it may hold a secret.
        action = f"{op.name.lower()} {mode.name.lower()}"
        raise Refused(action=action, reason=_MEANING.get(error, f"error {error}"), number=error)
    return text.rstrip(b"\0").decode(errors="replace")


def daemon(path: Path) -> int:
    """The process id of the tgtd behind the socket `path`.

    Raises:
        TargetUnavailable: there is none.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(path))
            # One that is closed without a request has tgtd read its end for ever.
            _exchange(sock, _head(Mode.SYSTEM, Op.SHOW))
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError as error:
        raise TargetUnavailable(where=path, reason=str(error)) from error
    pid: int = _CREDENTIALS.unpack(peer)[0]
    return pid


def _head(
    mode: Mode,
    op: Op,
    length: int = 0,
    tid: int = 0,
    sid: int = 0,
    lun: int = 0,
    cid: int = 0,
    force: bool = False,
) -> bytes:
    size = _REQUEST.size + length
    return _REQUEST.pack(mode, op, b"iscsi", size, tid, sid, lun, cid, 0, 0, 0, 0, force)


def _exchange(sock: socket.socket, message: bytes) -> tuple[int, bytes]:
    """The error and the text that tgtd answers."""
    sock.sendall(message)
    error, length = _RESPONSE.unpack(_receive(sock, _RESPONSE.size))
    return error, _receive(sock, length - _RESPONSE.size)


def _receive(sock: socket.socket, size: int) -> bytes:
    if not 0 <= size <= _MAX_ANSWER:
        raise OSError(f"tgtd announced {size} bytes")
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise OSError("tgtd closed the connection")
        parts += part
    return bytes(parts)


@dataclass
class Unit:
    """A logical unit: the path behind it, and its serial number and id."""

    path: str = ""
    serial: str = ""
    scsi_id: str = ""


@dataclass
class TargetListing:
    """A target as tgtd shows it."""

    tid: int
    iqn: str
    state: str = ""
    #: (session id, connection id, who): a session's connections.
    connections: list[tuple[int, int, Session]] = field(default_factory=list)
    #: Logical units by their numbers; 0 is the controller.
    luns: dict[int, Unit] = field(default_factory=dict)
    accounts: list[str] = field(default_factory=list)
    acls: list[str] = field(default_factory=list)


_TARGET = re.compile(r"Target (\d+): (.*)")
_SECTION = re.compile(r" {4}(System|I_T nexus|LUN|Account|ACL) information:")


def parse_targets(text: str) -> list[TargetListing]:
    """What ``show target`` answers for all targets (tgt_target_show_all in usr/target.c)."""
    targets: list[TargetListing] = []
    section = ""
    for line in text.splitlines():
        word = line.strip()
        if match := _TARGET.fullmatch(line):
            targets.append(TargetListing(int(match[1]), match[2]))
        elif match := _SECTION.fullmatch(line):
            section = match[1]
        elif targets and section == "Account":
            targets[-1].accounts.append(word)
        elif targets and section == "ACL":
            targets[-1].acls.append(word)
        elif targets:
            _parse_field(targets[-1], *word.partition(": ")[::2])
    return targets


def _parse_field(target: TargetListing, key: str, value: str) -> None:
    """Take one ``KEY: VALUE`` of a target's system, nexus or LUN information."""
    match key:
        case "State":
            target.state = value
        case "I_T nexus":
            target.connections.append((int(value), 0, Session(initiator="", ip="")))
        case "Initiator":
            target.connections[-1][2]["initiator"] = value.partition(" alias: ")[0]
        case "Connection":
            sid, _, who = target.connections[-1]
            target.connections[-1] = (sid, int(value), who)
        case "IP Address":
            target.connections[-1][2]["ip"] = value
        case "LUN":
            target.luns[int(value)] = Unit()
        case "SCSI SN":
            target.luns[next(reversed(target.luns))].serial = value
        case "SCSI ID":
            target.luns[next(reversed(target.luns))].scsi_id = value
        case "Backing store path":
            target.luns[next(reversed(target.luns))].path = value


def parse_values(text: str) -> dict[str, str]:
    """What ``show target`` answers for one target: a ``NAME=VALUE`` a line."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
