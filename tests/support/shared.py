"""Services that a whole run shares, whatever the number of its processes.

Under pytest-xdist a run is a controller and its workers. Each worker writes down which services
its tests need; the controller starts them in the background, and stops them at the end. A test
that needs one waits for it, or starts it itself if nobody has begun to.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Access = dict[str, Any]


@dataclass(frozen=True)
class Service:
    """A service to share.

    Attributes:
        fixture: the name of the fixture whose tests need it.
        start: starts it in a folder of its own, on its own feet: it outlives the process that
            called this. Returns what to know about it, for JSON.
        stop: ends it. The folder is all it gets; it may never have started.
        missing: what the machine lacks for it, or None.
    """

    fixture: str
    start: Callable[[Path, SharedServices], Access]
    stop: Callable[[Path], None]
    missing: Callable[[], str | None]


#: By the name of their fixtures.
SERVICES: dict[str, Service] = {}


def register_service(service: Service) -> Service:
    """Have it started early in runs whose tests need it."""
    SERVICES[service.fixture] = service
    return service


class SharedServices:
    """The services of one run, under `folder`, which all its processes know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)  # PostgreSQL runs as another user

    def access(self, service: Service) -> Access:
        """How to reach the service, which runs; the test is skipped where it can't be had."""
        missing = service.missing()
        if missing is not None:
            pytest.skip(missing)
        return self._start(service)

    def announce(self, items: Iterable[pytest.Item]) -> None:
        """Write down what these tests need."""
        for item in items:
            for name in SERVICES.keys() & set(getattr(item, "fixturenames", ())):
                (self.folder / f"{name}.needed").touch()

    def start_announced(self) -> None:
        """Start, in the background and side by side, what was announced and does not run."""
        for needed in self.folder.glob("*.needed"):
            needed.unlink()
            service = SERVICES[needed.stem]
            if service.missing() is None:
                # A failure is kept for those who need it.
                threading.Thread(target=self._try, args=(service,), daemon=True).start()

    def stop(self) -> None:
        """Stop all, for good; those that are just being started as well."""
        (self.folder / "ended").touch()
        for service in reversed(SERVICES.values()):
            folder = self.folder / service.fixture
            with self._locked(service):
                if folder.exists():
                    service.stop(folder)

    def _try(self, service: Service) -> None:
        try:
            self._start(service)
        except ServiceFailed:
            return

    def _start(self, service: Service) -> Access:
        state = self.folder / f"{service.fixture}.json"
        with self._locked(service):
            if state.exists():
                known: Access = json.loads(state.read_text())
            elif (self.folder / "ended").exists():
                known = {"failed": "the run has ended"}
            else:
                known = self._started(service)
                state.touch(mode=0o600)
                state.write_text(json.dumps(known))
        if "failed" in known:
            raise ServiceFailed(f"{service.fixture}: {known['failed']}")
        access: Access = known["access"]
        return access

    def _started(self, service: Service) -> Access:
        folder = self.folder / service.fixture
        try:
            if folder.exists():  # whoever began to start it did not come to the end
                service.stop(folder)
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            return {"access": service.start(folder, self)}
        except Exception as error:  # whatever it is, the next one need not try it again
            return {"failed": f"{type(error).__name__}: {error}"}

    @contextmanager
    def _locked(self, service: Service) -> Iterator[None]:
        with (self.folder / f"{service.fixture}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class ServiceFailed(Exception):
    """A service that the run shares did not start."""
