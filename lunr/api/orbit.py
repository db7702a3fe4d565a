"""``lunr-orbit``, the housekeeper: sees to what nobody asks for.

Each round it gives jobs out again whose node fell silent, marks such nodes
DOWN, repairs and purges records, deletes what copies between nodes left over,
makes the backups that schedules ask for and prunes those that no rule keeps,
collects the garbage of the accounts that are due, and verifies a share of their
backups. Several may run against one database: every duty can be done twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import click

from lunr.api.services import Services
from lunr.common import config, errors, log, signals, times
from lunr.common.help import HELP
from lunr.db import migrate

logger = logging.getLogger(__name__)


_DAY = 86400
#: How long a transaction may take.
_LATE = timedelta(minutes=5)


class Housekeeper:
    """The duties, done again every `[orbit] interval` seconds."""

    def __init__(self, services: Services, options: config.ConfigOpts) -> None:
        self._services = services
        self._interval: int = options.orbit.interval
        self._collect_interval: int = options.orbit.collect_interval
        self._verify_days: int = options.orbit.verify_days
        self._keep_records: int = options.orbit.keep_records
        #: When it last pruned at all, and when all volumes.
        self._pruned: datetime | None = None
        self._all_pruned: float | None = None
        self._duties = (
            self._clock,
            self._leases,
            self._nodes,
            self._repair,
            self._hidden_backups,
            self._schedules,
            self._retention,
            self._collect,
            self._verify,
            self._purge,
        )

    def run(self, stopping: threading.Event) -> None:
        """Do rounds until `stopping` is set."""
        while not stopping.is_set():
            self.round()
            stopping.wait(self._interval)

    def round(self) -> None:
        """Do every duty once; one that fails is logged, and tried again in the next round."""
        for duty in self._duties:
            try:
                for done in duty():
                    logger.info("%s", done)
            except errors.LunrError as error:
                logger.warning("%s: %s", duty.__name__.strip("_"), error)
            except Exception:  # a defect in one duty must not keep the others from being done
                logger.exception("%s failed", duty.__name__.strip("_"))

    def _clock(self) -> Iterator[str]:
        for name, count in self._services.clock.correct(times.now()).items():
            yield f"the times of {count} {name} were too far ahead"

    def _leases(self) -> Iterator[str]:
        if count := self._services.leases.expire(times.now()):
            yield f"{count} jobs had lost their node, their leases ran out"

    def _nodes(self) -> Iterator[str]:
        for id in self._services.nodes.mark_down(times.now()):
            yield f"node {id} is DOWN"

    def _repair(self) -> Iterator[str]:
        for id in self._services.maintenance.repair():
            yield f"{id} had lost its job"

    def _hidden_backups(self) -> Iterator[str]:
        for id in self._services.maintenance.release_unneeded(times.now()):
            yield f"hidden backup {id} is of no use any more and deleted again"

    def _schedules(self) -> Iterator[str]:
        if count := self._services.scheduling.forget():
            yield f"{count} schedules of deleted volumes are gone"
        now = times.now()
        while self._services.scheduling.plan(now):
            pass
        while (ran := self._services.scheduling.run(now)) is not None:
            yield f"volume {ran.volume_id}: {ran.reason or f'its schedule began {ran.backup_id}'}"

    def _retention(self) -> Iterator[str]:
        """Prune the volumes whose backups changed; once a day, and at first, all."""
        now = times.now()
        daily = self._all_pruned is None or time.monotonic() - self._all_pruned > _DAY
        # What was committed late has an earlier time than it was seen; twice does no harm. A
        # clock that was set back makes it all of them.
        is_back = self._pruned is not None and self._pruned > now
        since = None if daily or is_back or self._pruned is None else self._pruned - _LATE
        for account_id, volume_id in self._services.retention.due(since):
            told = self._services.retention.prune(account_id, volume_id)
            for backup in told["backups"]:
                if backup["status"] == "DELETING":
                    yield f"backup {backup['id']} of volume {volume_id} is pruned"
        self._pruned = now
        if daily:
            self._all_pruned = time.monotonic()

    def _collect(self) -> Iterator[str]:
        for account in self._services.collect.due(times.now(), self._collect_interval):
            job = self._services.collect.request(account)
            yield f"garbage collection of account {account} is job {job['id']}"

    def _verify(self) -> Iterator[str]:
        if self._verify_days == 0:
            return
        for account in self._services.verification.due(times.now(), _DAY):
            job = self._services.verification.request(account, self._verify_days)
            yield f"a share of account {account}'s backups is verified by job {job['id']}"

    def _purge(self) -> Iterator[str]:
        if count := self._services.maintenance.purge(times.now(), self._keep_records):
            yield f"{count} old records are purged"


@click.command(context_settings=HELP)
@click.option(
    "--config-file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Configuration, as for lunr-api.  [/etc/lunr/lunr.conf]",
)
@click.option("--once", is_flag=True, help="Do one round and end, for a timer instead of a daemon.")
def main(files: Sequence[str], once: bool) -> None:
    """Run lunr's housekeeper: leases, silent nodes, schedules, retention, garbage, old records."""
    try:
        options = config.load([f"--config-file={file}" for file in files], "lunr-orbit")
        log.setup(options.log_level, options.log_style)
        services = Services.of(options)
        migrate.check(services.context.db)
    except errors.LunrError as error:
        raise click.ClickException(str(error)) from error
    housekeeper = Housekeeper(services, options)
    if once:
        housekeeper.round()
        return
    stopping = threading.Event()
    signals.on_signal(stopping.set)
    logger.info("The housekeeper is at work")
    housekeeper.run(stopping)


if __name__ == "__main__":
    main()
