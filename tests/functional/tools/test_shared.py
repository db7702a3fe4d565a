"""What a run shares is started once, whoever needs it first, and stopped at the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import shared, waiting
from tests.support.shared import Access, Service, ServiceFailed, SharedServices
from tests.support.waiting import wait_until
from tools.services import loopback


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SharedServices:
    monkeypatch.setattr(shared, "SERVICES", {})
    return SharedServices(tmp_path / "services")


class Fake:
    """A service that counts how often it is started and stopped."""

    def __init__(self, fails: bool = False, missing: str | None = None) -> None:
        self.fails = fails
        self.events: list[str] = []
        self.service = Service("fake", start=self.start, stop=self.stop, missing=lambda: missing)
        shared.register_service(self.service)

    def start(self, folder: Path, _services: SharedServices) -> Access:
        assert folder.is_dir()
        self.events.append("start")
        if self.fails:
            raise RuntimeError("no port")
        return {"port": 7}

    def stop(self, _folder: Path) -> None:
        self.events.append("stop")


def test_many_who_need_it_start_it_once(services: SharedServices) -> None:
    fake = Fake()
    # Each as a process of its own has it: they know nothing but the folder.
    several = [SharedServices(services.folder) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda one: one.access(fake.service), several))
    assert told == [{"port": 7}] * 8
    services.stop()
    assert fake.events == ["start", "stop"]


def test_what_is_announced_is_started_ahead(
    services: SharedServices, request: pytest.FixtureRequest
) -> None:
    fake = Fake()
    services.announce([request.node])  # which needs nothing of that name
    services.start_announced()
    assert not fake.events
    request.node.fixturenames.append("fake")
    SharedServices(services.folder).announce([request.node])
    services.start_announced()
    wait_until(lambda: fake.events == ["start"], what="it is started")
    assert services.access(fake.service) == {"port": 7}
    assert fake.events == ["start"]


def test_one_that_does_not_start_is_tried_once(services: SharedServices) -> None:
    fake = Fake(fails=True)
    for _ in range(2):
        with pytest.raises(ServiceFailed, match="fake: RuntimeError: no port"):
            services.access(fake.service)
    assert fake.events == ["start"]


def test_one_whose_start_was_broken_off_is_started_again(services: SharedServices) -> None:
    fake = Fake()
    (services.folder / "fake").mkdir()
    (services.folder / "fake" / "half").touch()
    assert services.access(fake.service) == {"port": 7}
    assert fake.events == ["stop", "start"]
    assert not (services.folder / "fake" / "half").exists()


def test_after_the_end_none_is_started(services: SharedServices) -> None:
    fake = Fake()
    services.stop()
    with pytest.raises(ServiceFailed, match="the run has ended"):
        services.access(fake.service)
    assert not fake.events, "nor is one stopped that nobody started"


def test_what_the_machine_lacks_skips_the_test(services: SharedServices) -> None:
    fake = Fake(missing="needs a miracle")
    with pytest.raises(pytest.skip.Exception, match="needs a miracle"):
        services.access(fake.service)
    assert not fake.events


def test_workers_never_choose_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNR_PORTS", "")  # claim_ports() changes it
    ports: list[set[int]] = []
    for number in range(3):
        waiting.claim_ports(number, 3)
        ports.append({loopback.free_port() for _ in range(200)})
    for one, next_one in pairwise(ports):
        assert max(one) < min(next_one)
