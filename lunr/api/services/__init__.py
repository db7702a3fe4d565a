"""What the service can do. Transactions live here; WSGI, orbit and manage call it."""

from __future__ import annotations

from lunr.api.context import Context, Settings
from lunr.api.jobs.claims import Claims
from lunr.api.jobs.job_type import JobTypes
from lunr.api.jobs.leases import Leases
from lunr.api.secret_box import SecretBox
from lunr.api.services import dependencies
from lunr.api.services.accounts.service import Accounts
from lunr.api.services.accounts.tokens import Tokens
from lunr.api.services.backups import job_types as backup_jobs
from lunr.api.services.backups.gc import GarbageCollection
from lunr.api.services.backups.groups import Groups
from lunr.api.services.backups.records import Records
from lunr.api.services.backups.service import Backups
from lunr.api.services.backups.verification import Verification
from lunr.api.services.clock import Clock
from lunr.api.services.exports import job_types as export_jobs
from lunr.api.services.exports.service import Exports
from lunr.api.services.jobs import Jobs
from lunr.api.services.maintenance import Maintenance
from lunr.api.services.nodes.service import Nodes
from lunr.api.services.retention.service import Retention
from lunr.api.services.schedules.runner import ScheduleRunner
from lunr.api.services.schedules.service import Schedules
from lunr.api.services.snapshots import job_types as snapshot_jobs
from lunr.api.services.snapshots.service import Snapshots
from lunr.api.services.volumes import job_types as volume_jobs
from lunr.api.services.volumes.service import Volumes
from lunr.api.services.volumes.types import VolumeTypes
from lunr.common.config import ConfigOpts
from lunr.db.session import Database

#: What all nouns have of them.
JOB_TYPES = JobTypes(
    *volume_jobs.JOB_TYPES,
    *snapshot_jobs.JOB_TYPES,
    *export_jobs.JOB_TYPES,
    *backup_jobs.JOB_TYPES,
)


class Services:
    """All services over one database.

    The key file of the secret box is read when the first secret is, or at
    ``context.secret_box.check()``: those who touch no export need none.
    """

    def __init__(self, database: Database, settings: Settings, secret_box: SecretBox) -> None:
        self.context = context = Context(database, settings, secret_box, JOB_TYPES)
        dependencies.follow_moves(context)
        self.accounts = Accounts(context)
        self.tokens = Tokens(context)
        self.volume_types = VolumeTypes(context)
        self.nodes = Nodes(context)
        self.volumes = Volumes(context)
        self.snapshots = Snapshots(context)
        self.backups = Backups(context)
        self.groups = Groups(context)
        self.exports = Exports(context)
        self.jobs = Jobs(context)
        self.claims = Claims(context)
        self.clock = Clock(context)
        self.leases = Leases(context)
        self.collect = GarbageCollection(context)
        self.maintenance = Maintenance(context)
        self.records = Records(context)
        self.retention = Retention(context)
        self.schedules = Schedules(context)
        self.scheduling = ScheduleRunner(context)
        self.verification = Verification(context)

    @classmethod
    def of(cls, conf: ConfigOpts) -> Services:
        """The services as `conf` configures them.

        Raises:
            errors.ConfigError: the database's URL can't be used.
        """
        database = Database(conf.database.connection, conf.database.pool_size)
        return cls(database, Settings.of(conf), SecretBox(conf.api.secret_key_file))

    def close(self) -> None:
        """Close the connections to the database."""
        self.context.db.close()
