"""What every service is given: database, settings, secret box, job types, notifier."""

from __future__ import annotations

from dataclasses import dataclass, field

from lunr.api.jobs.job_type import JobTypes
from lunr.api.jobs.notifier import JobNotifier
from lunr.api.secret_box import SecretBox
from lunr.common.config import ConfigOpts
from lunr.db.session import Database


@dataclass(frozen=True)
class Settings:
    """The options that the services use, read once (oslo.config is slow to ask)."""

    page_limit: int = 1000
    lease_seconds: int = 60
    job_attempts: int = 5
    retry_delay: int = 5
    node_timeout: int = 30
    placement: str = "broad_fill"
    iqn_prefix: str = "iqn.2026-11.io.lunr"
    quotas: dict[str, int] = field(
        default_factory=lambda: {
            "volumes": 1000,
            "gigabytes": 102400,
            "snapshots": 1000,
            "backups": 10000,
        }
    )

    @classmethod
    def of(cls, conf: ConfigOpts) -> Settings:
        """The settings in `conf`."""
        names = (
            "page_limit",
            "lease_seconds",
            "job_attempts",
            "retry_delay",
            "node_timeout",
            "placement",
            "iqn_prefix",
        )
        quotas = ("volumes", "gigabytes", "snapshots", "backups")
        return cls(
            **{name: conf.api[name] for name in names},
            quotas={name: conf.quota[name] for name in quotas},
        )


@dataclass(frozen=True)
class Context:
    """Shared by the services of one process."""

    db: Database
    settings: Settings
    secret_box: SecretBox
    job_types: JobTypes
    notifier: JobNotifier = field(default_factory=JobNotifier)
