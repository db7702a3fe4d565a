"""The keeper of many machines: one's trouble is not the others', and what is too old goes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from lunr.backup.errors import StoreUnavailable
from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.stores.memory import MemoryStore
from lunr.live.backup import groups
from lunr.live.backup.groups import Group
from lunr.live.daemon import main
from lunr.live.daemon.main import BackupDaemon
from lunr.live.daemon.settings import Machine
from tests.unit.backup.support import Faulty
from tests.unit.live.backup.test_groups import made

NOW = datetime.now(UTC).replace(microsecond=0)


class Place:
    """A store that can fail, and what takes the place of a backup."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.before: Callable[[str, str], None] = lambda _call, _name: None
        store = Faulty(MemoryStore(), lambda call, name: self.before(call, name))
        self.repository = Repository(store, derive.derive(derive.PUBLIC_MASTER, "default"))
        self.stop = threading.Event()
        patch.setattr(main, "_monitor", lambda _machine: contextlib.nullcontext())
        patch.setattr(main.cleanup, "recover", lambda *_: None)
        patch.setattr(main, "backup", lambda *_: self.stored(NOW))

    def stored(self, moment: datetime) -> Group:
        group = made(self.repository, "web", "a", moment=moment)
        groups.store(self.repository, group)
        return group

    def left(self, moment: datetime) -> str:
        """What a backup has left that was killed."""
        return made(self.repository, "web", "a", moment=moment).group_id

    def keeper(self, *machines: Machine) -> BackupDaemon:
        return BackupDaemon(self.repository, machines, self.stop)

    def attend(self, keep: int) -> tuple[bool, int, int]:
        """Whether the backup went well, and how many groups and leftovers there are then."""
        went_well = self.keeper().back_up_and_prune(Machine("web", qmp="/x", keep=keep))
        self.before = lambda _call, _name: None
        listed = groups.listed(self.repository, "web")
        return went_well, len(listed), len(groups.unfinished(self.repository, "web"))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


@pytest.mark.parametrize("error", [OSError("x"), ElementTree.ParseError("x"), KeyError("x")])
def test_the_others_are_backed_up(
    place: Place,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attended = []

    def back_up(_repository: object, _monitor: object, options: main.Options) -> Group:
        attended.append(options.machine)
        if options.machine == "bad":
            raise error
        place.stop.set()
        return made(place.repository, "web", "a")

    monkeypatch.setattr(main, "backup", back_up)
    place.keeper(Machine("bad", qmp="/x"), Machine("web", qmp="/y")).run()
    assert attended == ["bad", "web"]  # and what failed waits
    (record,) = (record for record in caplog.records if "Not backed up" in record.getMessage())
    assert record.exc_info is not None


def test_what_is_too_old_goes_and_what_is_kept_stays(place: Place) -> None:
    for days in (3, 2, 1):
        place.stored(NOW - timedelta(days=days))
    place.left(NOW - timedelta(days=2, hours=1))
    kept = place.left(NOW - timedelta(hours=1))
    assert place.attend(2) == (True, 2, 1)
    assert list(groups.unfinished(place.repository)) == [kept]


def test_leftovers_go_where_all_is_kept(place: Place) -> None:
    for days in (3, 2):
        place.stored(NOW - timedelta(days=days))
    place.left(NOW - timedelta(days=2, hours=1))
    kept = place.left(NOW - timedelta(hours=1))  # a listing that is behind looks so, too
    assert place.attend(0) == (True, 3, 1)
    assert list(groups.unfinished(place.repository)) == [kept]


def test_a_listing_that_is_behind(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.left(NOW - timedelta(hours=1))
    with monkeypatch.context() as patch:
        patch.setattr(groups, "listed", lambda *_: [])
        went_well = place.keeper().back_up_and_prune(Machine("web", qmp="/x", keep=2))
    assert went_well
    assert len(groups.unfinished(place.repository)) == 1


@pytest.mark.parametrize("error", [StoreUnavailable(store="here", reason="x"), OSError("x")])
def test_a_backup_is_one_though_what_is_old_stays(place: Place, error: Exception) -> None:
    place.left(NOW - timedelta(days=9))

    def fail(call: str, _name: str) -> None:
        if call == "delete":
            raise error

    place.before = fail
    assert place.attend(1) == (True, 1, 1)
    assert place.attend(1) == (True, 1, 0)
