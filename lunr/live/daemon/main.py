"""``lunr-live``: backs up the virtual machines of a hypervisor, each at its time."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lunr import __version__
from lunr.backup.keys import master_keys
from lunr.backup.open import open_repository
from lunr.backup.repository.repository import Repository
from lunr.client import Client
from lunr.common import files, log, signals, units
from lunr.common.errors import Cancelled, LunrError
from lunr.live.backup import groups
from lunr.live.backup.announcements import Service
from lunr.live.backup.backup import Options, backup, connected_agent
from lunr.live.daemon.settings import Machine, Settings, load
from lunr.live.qemu import cleanup, libvirt
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: Seconds before a machine whose backup failed is tried again, at least; or its own time, if
#: that is shorter.
RETRY = 300.0

#: After this no store is still behind with its listing: what seems unfinished is.
_SETTLED = timedelta(days=1)


class BackupDaemon:
    """Backs up one machine after another, when it is due."""

    def __init__(
        self,
        repository: Repository,
        machines: Sequence[Machine],
        stop: threading.Event,
        service: Service | None = None,
    ) -> None:
        """`stop` ends it, within a second also amid a backup; `service` is told of the backups."""
        self._repository = repository
        self._service = service
        self._machines = machines
        self._stop = stop

    def run(self) -> None:
        """Go on until stopped; first let all machines go on that an earlier one has stopped."""
        for machine in self._machines:
            with log.context(machine.name):
                self._recover(machine)
        due = {machine.name: self._due(machine) for machine in self._machines}
        while not self._stop.is_set():
            machine = min(self._machines, key=lambda one: due[one.name])
            if self._stop.wait(max(0.0, due[machine.name] - time.time())):
                return
            began = time.time()
            with log.context(machine.name):
                wait = machine.every if self.attend(machine) else min(machine.every, RETRY)
            due[machine.name] = max(began + wait, time.time())

    def _due(self, machine: Machine) -> float:
        """When the next backup of `machine` is due: the store knows of the last one."""
        try:
            found = groups.listed(self._repository, machine.name)
            if not found:
                return time.time()
            last = datetime.fromisoformat(found[0].created_at).astimezone(UTC).timestamp()
        except Exception as error:  # as in `attend`
            logger.warning("%s: %s", machine.name, error, exc_info=_trace(error))
            return time.time()
        return min(last, time.time()) + machine.every

    def _recover(self, machine: Machine) -> None:
        path = Path(machine.agent) if machine.agent else None
        try:
            with _monitor(machine) as monitor, contextlib.ExitStack() as stack:
                cleanup.recover(monitor, connected_agent(monitor, path, stack))
        except Exception as error:  # as in `attend`
            logger.warning("Not looked after: %s", error, exc_info=_trace(error))

    def attend(self, machine: Machine) -> bool:
        """Back up `machine` and delete what it has too many of; whether that went well."""
        options = Options(
            machine=machine.name,
            disks=machine.disks or None,
            scratch=Path(machine.scratch),
            scratch_limit=machine.scratch_limit * units.MIB,
            scratch_reserve=(
                None if machine.scratch_reserve < 0 else machine.scratch_reserve * units.MIB
            ),
            agent=Path(machine.agent) if machine.agent else None,
            cancel=self._stop,
            service=self._service,
        )
        try:
            with _monitor(machine) as monitor:
                group = backup(self._repository, monitor, options)
            ways = ", ".join(f"{member.disk} {member.way}" for member in group.members)
            stall = group.stall_seconds * 1000
            logger.info("Saved %s: %s; it stood still for %.1f ms.", group.group_id, ways, stall)
        except Cancelled:
            logger.info("Given up: the service is being stopped.")
            return False
        except Exception as error:  # whatever one machine has, the others are to be backed up
            logger.error("Not backed up: %s", error, exc_info=_trace(error))  # noqa: TRY400
            return False
        try:
            self._forget(machine)
        except Exception as error:  # the backup is there; the next time
            logger.warning("Too old ones are not deleted: %s", error, exc_info=_trace(error))
        return True

    def _forget(self, machine: Machine) -> None:
        """Delete what is too old, and what killed backups have left."""
        left = groups.unfinished(self._repository, machine.name)
        found = groups.listed(self._repository, machine.name)
        count = machine.keep or len(found)
        for group in found[count:]:
            if self._delete(group.group_id):
                logger.info("Deleted %s: %d newer ones are kept.", group.group_id, count)
        bounds = [groups.new_id(machine.name, datetime.now(UTC) - _SETTLED)]
        if machine.keep and len(found) >= machine.keep:
            bounds.append(found[machine.keep - 1].group_id)  # no one is kept that is older
        for group_id in (one for one in left if one < max(bounds)):
            if self._delete(group_id):
                logger.info("Deleted what a backup that was killed had left: %s.", group_id)

    def _delete(self, group_id: str) -> bool:
        """Delete a group, or what is left of one; whether that went well."""
        try:
            if self._service is None or not self._service.delete(group_id):
                groups.delete(self._repository, group_id)
        except LunrError as error:  # the next time
            logger.warning("%s is not deleted: %s", group_id, error)
            return False
        return True


@contextlib.contextmanager
def _monitor(machine: Machine) -> Iterator[Monitor]:
    path = Path(machine.qmp) if machine.qmp else libvirt.socket_of(machine.libvirt)
    with Monitor.open(path) as monitor:
        yield monitor


def _trace(error: Exception) -> Exception | None:
    """What nobody has thought of is logged with where it came from."""
    return None if isinstance(error, LunrError) else error


def serve(settings: Settings, stop: threading.Event) -> None:
    """Back up all machines, until `stop` is set.

    Raises:
        LunrError: the store or the key can't be used.
    """
    place = settings.store
    keys = master_keys.load(Path(place.key_file) if place.key_file else None)
    with contextlib.ExitStack() as stack:
        service = None
        if settings.service is not None:
            told = settings.service
            token = files.read(told.token_file, "[service] token_file")
            service = Service(stack.enter_context(Client(told.url, told.account, token)))
        repository = stack.enter_context(
            open_repository(place.url, settings.repository, keys, cancel=stop)
        )
        BackupDaemon(repository, settings.machines, stop, service).run()


def main() -> int:
    """Run ``lunr-live``."""
    parser = argparse.ArgumentParser(prog="lunr-live", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--config", type=Path, default=Path("/etc/lunr/live.toml"))
    options = parser.parse_args()
    log.setup()
    stop = threading.Event()
    signals.on_signal(stop.set)
    try:
        serve(load(options.config), stop)
    except LunrError as error:
        print(f"lunr-live: {error}", file=sys.stderr)  # noqa: T201 - before there is work
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
