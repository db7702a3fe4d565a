"""What every target can do.

A target is what initiators log in to; each exports one volume. All of a
driver's operations can be run twice with the same end.
"""

from __future__ import annotations

import abc
import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from lunr.common import errors, ids

#: An iSCSI name, RFC 7143 section 4.2.7 (and capitals, which initiators do use).
NAME = re.compile(r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}")
#: What a CHAP name or secret may hold: printable, and no comma, which tgtd splits at.
_CREDENTIAL = re.compile(r"[!-+\--~]{1,200}")


class TargetUnavailable(errors.LunrError):
    """The iSCSI target {where} can't be used: {reason}"""

    code = "target_unavailable"
    status = 503
    retry = True


class TargetFailed(errors.LunrError):
    """The iSCSI target refused to {action}: {reason}"""

    code = "target_failed"


class TargetBusy(errors.LunrError):
    """The export of volume {id} can't be taken down yet: {reason}"""

    code = "target_busy"
    status = 409
    retry = True


class LimitsUnavailable(errors.LunrError):
    """The I/O limits of volume {id} can't be enforced: {reason}"""

    code = "limits_unavailable"


class Session(TypedDict):
    """An initiator that is logged in."""

    initiator: str
    ip: str


@dataclass(frozen=True)
class Export:
    """One volume as it is to be exported.

    At least one of `initiator` (its iSCSI name) and `ip` is given; who logs in
    must match every one that is, and know the CHAP secret.
    """

    volume_id: str
    path: Path
    iqn: str
    lun: int
    username: str
    password: str = field(repr=False)
    #: What the initiator sees as the disk's serial number.
    serial: str
    initiator: str | None = None
    ip: str | None = None
    #: The most operations in a second; 0: no limit.
    read_iops: int = 0
    write_iops: int = 0

    def __post_init__(self) -> None:
        ids.check(self.volume_id, "volume_id")
        _match(NAME, self.iqn, "iqn", "an iSCSI name")
        if volume_of(self.iqn) != self.volume_id:
            raise errors.InvalidField(
                field="iqn", reason="it must end with ':' and the volume's id"
            )
        if self.initiator is None and self.ip is None:
            raise errors.InvalidField(
                field="initiator", reason="an export needs an initiator, an ip, or both"
            )
        if self.initiator is not None:
            _match(NAME, self.initiator, "initiator", "an iSCSI name")
        if self.ip is not None:
            try:
                ipaddress.ip_address(self.ip)
            except ValueError as error:
                raise errors.InvalidField(field="ip", reason=str(error)) from error
        _match(_CREDENTIAL, self.username, "username", "a CHAP name without commas")
        _match(_CREDENTIAL, self.password, "password", "a CHAP secret without commas")
        _match(_CREDENTIAL, self.serial, "serial", "a serial number without commas")
        if not 1 <= self.lun <= 255:
            raise errors.InvalidField(field="lun", reason="1 to 255")
        if min(self.read_iops, self.write_iops) < 0:
            raise errors.InvalidField(field="read_iops, write_iops", reason="0 or more")

    def admits(self, session: Session) -> bool:
        """Whether `session` is one of those this export is for."""
        return self.initiator in (None, session["initiator"]) and (
            self.ip is None or ipaddress.ip_address(self.ip) == ipaddress.ip_address(session["ip"])
        )


class Target(abc.ABC):
    """Exports volumes."""

    #: What the configuration and the API call this driver.
    name: str

    def __init__(self) -> None:
        #: The volumes whose exports a failure left half made.
        self._half_made: set[str] = set()

    @contextlib.contextmanager
    def _changing(self, volume_id: str) -> Iterator[None]:
        """Count the export as half made unless the ``with`` comes to its end.

        `exports` leaves it out, so that who looks after the exports puts it back.
        """
        self._half_made.add(volume_id)
        yield  # no `finally`: what is raised leaves it so
        self._half_made.discard(volume_id)

    @abc.abstractmethod
    def check(self) -> None:
        """Find out whether the target can be used now.

        Raises:
            TargetUnavailable: it can't be reached.
        """

    @abc.abstractmethod
    def ensure(self, export: Export) -> None:
        """Export a volume exactly as asked, whatever was there before.

        At no moment can anybody log in that `export` does not admit. Its limits
        hold for whoever is logged in already, too.

        Raises:
            TargetUnavailable, TargetFailed
            LimitsUnavailable: it has limits that can't be enforced here.
        """

    @abc.abstractmethod
    def resize(self, volume_id: str) -> None:
        """Have initiators see that the volume is larger now; nothing, if it is not exported.

        Raises:
            TargetUnavailable, TargetFailed
            TargetBusy: it can't be let go of now; all is as before.
        """

    @abc.abstractmethod
    def reopen(self, export: Export) -> None:
        """Open what is exported anew, by the path of `export`; nothing, if it is not exported.

        What it had open before may be dead. Initiators lose their connection and log in
        again by themselves. The limits of `export` hold for what is open now.

        Raises:
            TargetUnavailable, TargetFailed
            TargetBusy: it can't be let go of now; all is as before.
            LimitsUnavailable: it has limits that can't be enforced here.
        """

    @abc.abstractmethod
    def limits_io(self) -> bool:
        """Whether limits of I/O can be enforced on this node."""

    @abc.abstractmethod
    def remove(self, volume_id: str, force: bool = False) -> None:
        """Stop exporting the volume.

        Raises:
            errors.InUse: an initiator is logged in, and not `force`; all is as before.
            TargetUnavailable, TargetFailed
        """

    def close(self) -> None:
        """Nobody looks at the target from now on until it is used anew; sessions stay."""
        return

    @abc.abstractmethod
    def exports(self) -> Mapping[str, list[Session]]:
        """The ids of the volumes that are exported now, and who is logged in.

        What a failed `ensure`, `resize` or `reopen` left half made is not among them.

        Raises:
            TargetUnavailable
        """


def volume_of(iqn: str) -> str:
    """The id of the volume that a target's name ends with.

    >>> volume_of("iqn.2026-11.io.lunr:v1")
    'v1'
    """
    return iqn.rpartition(":")[2]


def _match(pattern: re.Pattern[str], value: str, name: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise errors.InvalidField(field=name, reason=f"it must be {what}")
