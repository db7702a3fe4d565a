"""What the service can do. Transactions live here; WSGI, orbit and manage call it."""

from __future__ import annotations

from lunr.api.context import Core, Settings
from lunr.api.jobs.claims import Claims
from lunr.api.secret_box import Vault
from lunr.api.services.accounts.service import Accounts
from lunr.api.services.accounts.tokens import Tokens
from lunr.api.services.backups.gc import Collect
from lunr.api.services.backups.groups import Groups
from lunr.api.services.backups.records import Records
from lunr.api.services.backups.service import Backups
from lunr.api.services.backups.verification import Verification
from lunr.api.services.exports.service import Exports
from lunr.api.services.jobs import Jobs
from lunr.api.services.maintenance import Upkeep
from lunr.api.services.nodes.service import Nodes
from lunr.api.services.retention.service import Retention
from lunr.api.services.schedules.runner import Scheduling
from lunr.api.services.schedules.service import Schedules
from lunr.api.services.snapshots.service import Snapshots
from lunr.api.services.volumes.service import Volumes
from lunr.api.services.volumes.types import VolumeTypes
from lunr.common.config import ConfigOpts
from lunr.db.session import Database


class Services:
    """All services over one database.

    The key file of the vault is read when the first secret is, or at
    ``core.vault.check()``: those who touch no export need none.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.accounts = Accounts(core)
        self.tokens = Tokens(core)
        self.volume_types = VolumeTypes(core)
        self.nodes = Nodes(core)
        self.volumes = Volumes(core)
        self.snapshots = Snapshots(core)
        self.backups = Backups(core)
        self.groups = Groups(core)
        self.exports = Exports(core)
        self.jobs = Jobs(core)
        self.claims = Claims(core)
        self.collect = Collect(core)
        self.upkeep = Upkeep(core)
        self.records = Records(core)
        self.retention = Retention(core)
        self.schedules = Schedules(core)
        self.scheduling = Scheduling(core)
        self.verification = Verification(core)

    @classmethod
    def of(cls, conf: ConfigOpts) -> Services:
        """The services as `conf` configures them.

        Raises:
            errors.ConfigError: the database's URL can't be used.
        """
        database = Database(conf.database.connection, conf.database.pool_size)
        return cls(Core(database, Settings.of(conf), Vault(conf.api.secret_key_file)))

    def close(self) -> None:
        """Close the connections to the database."""
        self.core.db.close()
