"""The errors of backups of running virtual machines."""

from __future__ import annotations

from lunr.backup.errors import SourceError
from lunr.common.errors import Conflict, LunrError, NotFound, Unavailable


class MonitorUnavailable(Unavailable):
    """The monitor {path} can't be reached: {reason} A QMP socket serves one client at a time: give lunr one of its own."""  # noqa: E501 - a sentence

    code = "monitor_unavailable"


class MonitorSilent(MonitorUnavailable):
    """The monitor {path} has not answered {command} for {timeout:g} seconds."""

    code = "monitor_silent"


class NoSuchDomain(NotFound):
    """The libvirt domain {domain} can't be used: {reason}"""

    code = "no_such_domain"


class CommandRefused(LunrError):
    """QEMU refused {command}: {reason}"""

    code = "qemu_refused"


class CannotBackUp(Conflict):
    """This virtual machine can't be backed up while it runs: {reason}"""

    code = "cannot_back_up_live"


class FilterLeft(LunrError):
    """The device {device} still uses lunr's filter {filter}, and QEMU has no note of the disk behind it. The guest goes on and loses nothing. Stop the machine and start it again before the next backup."""  # noqa: E501 - a sentence

    code = "filter_left"


class WrongNode(LunrError):
    """After the backup the device {device} should use its disk {node} again, and uses {used}. Stop the machine at once: it may write to another disk."""  # noqa: E501 - a sentence

    code = "wrong_node"


class FreezeFailed(LunrError):
    """The guest agent at {path} did not {action} the file systems: {reason}"""

    code = "freeze_failed"
    retry = True


class ExportLost(SourceError):
    """{path} can't be read at byte {offset}: {reason} The virtual machine goes on; the backup was given up."""  # noqa: E501 - a sentence

    code = "export_lost"
    retry = True


class ScratchLimit(LunrError):
    """The guest overwrote more than {limit} during the backup, which may take no more scratch space. The backup was given up, the virtual machine goes on."""  # noqa: E501 - a sentence

    code = "scratch_limit"
    retry = True


class ScratchReserve(LunrError):
    """Less than {reserve} would be free where the scratch files are, and a machine may have its disks there. The backup was given up, the virtual machine goes on. Give it another folder, or reserve less (--scratch-reserve)."""  # noqa: E501 - a sentence

    code = "scratch_reserve"
    retry = True


class DiskResized(LunrError):
    """The disk {disk} was resized while it was backed up. The backup was given up: the next one reads all of that disk."""  # noqa: E501 - a sentence

    code = "disk_resized"
    retry = True


class GroupMissing(NotFound):
    """There is no complete group of backups {id} in the store."""

    code = "group_missing"


class GroupDeleted(Conflict):
    """The service does not know the group {id} any more: it was deleted meanwhile."""

    code = "group_deleted"


class CannotStart(Conflict):
    """The machine can't be started from the group: {reason}"""

    code = "cannot_start"
