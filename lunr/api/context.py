"""What every service is given: the database, the settings, the vault, the bell."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from lunr.api.secret_box import Vault
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


@dataclass(eq=False)
class _Waiter:
    """One claim that waits for a job of some kinds."""

    node_id: str
    kinds: frozenset[str]
    woken: threading.Condition
    rung: bool = False


class Bell:
    """Wakes a claim that waits for a job, as soon as one is committed in this process.

    One job wakes one claim: were all woken, those that come too late would
    only keep the process from answering.
    """

    def __init__(self) -> None:
        #: The process is about to end: nobody is to wait any more.
        self.closed = False
        self._lock = threading.Lock()
        self._rings = 0
        self._waiting: list[_Waiter] = []

    def rings(self) -> int:
        """How often it rang so far: take it before looking for a job."""
        with self._lock:
            return self._rings

    def ring(self, node_id: str | None, kind: str | None = None) -> None:
        """There is a job for the node (None: for any), of that kind (None: perhaps of several)."""
        with self._lock:
            self._rings += 1
            fitting = [
                waiter
                for waiter in self._waiting
                if node_id in (None, waiter.node_id) and (kind is None or kind in waiter.kinds)
            ]
            for waiter in fitting if kind is None else fitting[:1]:
                self._waiting.remove(waiter)
                waiter.rung = True
                waiter.woken.notify()

    def wait(self, node_id: str, kinds: Collection[str], heard: int, seconds: float) -> bool:
        """Wait for a ring for such a claim, at most `seconds`; not if it rang since `heard`.

        Returns:
            Whether it rang, or is closed.
        """
        with self._lock:
            if self._rings != heard:
                return True
            waiter = _Waiter(node_id, frozenset(kinds), threading.Condition(self._lock))
            self._waiting.append(waiter)
            if not waiter.woken.wait_for(lambda: waiter.rung, seconds):
                self._waiting.remove(waiter)
            return waiter.rung or self.closed


@dataclass(frozen=True)
class Core:
    """Shared by the services of one process."""

    db: Database
    settings: Settings
    vault: Vault
    bell: Bell = field(default_factory=Bell)
