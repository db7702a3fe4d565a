"""What the service can do. Transactions live here; WSGI, orbit and manage call it."""

from __future__ import annotations

from lunr.api.services.accounts import Accounts
from lunr.api.services.backups import Backups
from lunr.api.services.claims import Claims
from lunr.api.services.collect import Collect
from lunr.api.services.core import Core, Settings
from lunr.api.services.exports import Exports
from lunr.api.services.groups import Groups
from lunr.api.services.jobs import Jobs
from lunr.api.services.nodes import Nodes
from lunr.api.services.records import Records
from lunr.api.services.retention import Retention
from lunr.api.services.schedules import Schedules
from lunr.api.services.scheduling import Scheduling
from lunr.api.services.snapshots import Snapshots
from lunr.api.services.tokens import Tokens
from lunr.api.services.upkeep import Upkeep
from lunr.api.services.vault import Vault
from lunr.api.services.verification import Verification
from lunr.api.services.volume_types import VolumeTypes
from lunr.api.services.volumes import Volumes
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
