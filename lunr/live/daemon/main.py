"""``lunr-live``: backs up the virtual machines of a hypervisor at intervals."""

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

#: Seconds after a failed backup before the next attempt, or the machine's interval if that is
#: shorter.
RETRY = 300.0

#: After this the listings of every store are up to date: groups listed as unfinished are so.
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
        """`stop` ends it within a second, even during a backup; `service` registers the backups."""
        self._repository = repository
        self._service = service
        self._machines = machines
        self._stop = stop

    def run(self) -> None:
        """Back up until stopped; first resume all machines that a killed backup left stopped."""
        for machine in self._machines:
            with log.context(machine.name):
                self._recover(machine)
        due = {machine.name: self._due(machine) for machine in self._machines}
        while not self._stop.is_set():
            machine = min(self._machines, key=lambda other: due[other.name])
            if self._stop.wait(max(0.0, due[machine.name] - time.time())):
                return
            began = time.time()
            with log.context(machine.name):
                wait = (
                    machine.every if self.back_up_and_prune(machine) else min(machine.every, RETRY)
                )
            due[machine.name] = max(began + wait, time.time())

    def _due(self, machine: Machine) -> float:
        """When the next backup of `machine` is due, by the last one in the store."""
        try:
            complete = groups.listed(self._repository, machine.name)
            if not complete:
                return time.time()
            last = datetime.fromisoformat(complete[0].created_at).astimezone(UTC).timestamp()
        except Exception as error:  # as in `back_up_and_prune`
            logger.warning("%s: %s", machine.name, error, exc_info=_trace(error))
            return time.time()
        return min(last, time.time()) + machine.every

    def _recover(self, machine: Machine) -> None:
        path = Path(machine.agent) if machine.agent else None
        try:
            with _monitor(machine) as monitor, contextlib.ExitStack() as stack:
                cleanup.recover(monitor, connected_agent(monitor, path, stack))
        except Exception as error:  # as in `back_up_and_prune`
            logger.warning("Not cleaned up: %s", error, exc_info=_trace(error))

    def back_up_and_prune(self, machine: Machine) -> bool:
        """Back up `machine` and delete its oldest groups; return whether the backup succeeded."""
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
            logger.info("The backup was given up: the service is being stopped.")
            return False
        except Exception as error:  # the other machines must still be backed up
            logger.error("Not backed up: %s", error, exc_info=_trace(error))  # noqa: TRY400
            return False
        try:
            self._prune(machine)
        except Exception as error:  # the backup is complete; the next run prunes
            logger.warning("Old groups are not deleted: %s", error, exc_info=_trace(error))
        return True

    def _prune(self, machine: Machine) -> None:
        """Delete the groups that are too old, and the remains of killed backups."""
        unfinished = groups.unfinished(self._repository, machine.name)
        complete = groups.listed(self._repository, machine.name)
        count = machine.keep or len(complete)
        for group in complete[count:]:
            if self._delete(group.group_id):
                logger.info("Deleted %s: %d newer ones are kept.", group.group_id, count)
        bounds = [groups.new_id(machine.name, datetime.now(UTC) - _SETTLED)]
        if machine.keep and len(complete) >= machine.keep:
            bounds.append(complete[machine.keep - 1].group_id)  # no older group is kept
        for group_id in (
            unfinished_id for unfinished_id in unfinished if unfinished_id < max(bounds)
        ):
            if self._delete(group_id):
                logger.info("Deleted the remains of a killed backup: %s.", group_id)

    def _delete(self, group_id: str) -> bool:
        """Delete a group, or its remains; return whether that succeeded."""
        try:
            if self._service is None or not self._service.delete(group_id):
                groups.delete(self._repository, group_id)
        except LunrError as error:  # the next run tries again
            logger.warning("%s is not deleted: %s", group_id, error)
            return False
        return True


@contextlib.contextmanager
def _monitor(machine: Machine) -> Iterator[Monitor]:
    path = Path(machine.qmp) if machine.qmp else libvirt.socket_of(machine.libvirt)
    with Monitor.open(path) as monitor:
        yield monitor


def _trace(error: Exception) -> Exception | None:
    """The trace to log: only that of unexpected errors."""
    return None if isinstance(error, LunrError) else error


def serve(settings: Settings, stop: threading.Event) -> None:
    """Back up all machines, until `stop` is set.

    Raises:
        LunrError: the store or the key can't be used.
    """
    store_settings = settings.store
    keys = master_keys.load(Path(store_settings.key_file) if store_settings.key_file else None)
    with contextlib.ExitStack() as stack:
        service = None
        if settings.service is not None:
            service_settings = settings.service
            token = files.read(service_settings.token_file, "[service] token_file")
            service = Service(
                stack.enter_context(Client(service_settings.url, service_settings.account, token))
            )
        repository = stack.enter_context(
            open_repository(store_settings.url, settings.repository, keys, cancel=stop)
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
