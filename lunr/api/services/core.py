"""What every service is given: the database, the settings, the vault, the bell."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from lunr.api.services.vault import Vault
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


class Bell:
    """Wakes those who wait for a job, as soon as one is committed in this process."""

    def __init__(self) -> None:
        #: The process is about to end: nobody is to wait any more.
        self.closed = False
        self._lock = threading.Lock()
        self._rings: dict[str, int] = {}
        self._waiting: dict[str, threading.Condition] = {}

    def rings(self, node_id: str) -> int:
        """How often it rang for the node so far: take it before looking for a job."""
        with self._lock:
            return self._rings.get(node_id, 0)

    def ring(self, node_id: str | None) -> None:
        """There may be a job for the node (None: for any)."""
        with self._lock:
            for node in list(self._waiting) if node_id is None else [node_id]:
                self._rings[node] = self._rings.get(node, 0) + 1
                if node in self._waiting:
                    self._waiting[node].notify_all()

    def wait(self, node_id: str, heard: int, seconds: float) -> None:
        """Wait until it has rung more than `heard` times, at most `seconds`."""
        deadline = time.monotonic() + seconds
        with self._lock:
            bell = self._waiting.setdefault(node_id, threading.Condition(self._lock))
            while self._rings.get(node_id, 0) == heard:
                left = deadline - time.monotonic()
                if left <= 0 or not bell.wait(left):
                    return


@dataclass(frozen=True)
class Core:
    """Shared by the services of one process."""

    db: Database
    settings: Settings
    vault: Vault
    bell: Bell = field(default_factory=Bell)
