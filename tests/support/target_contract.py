"""What every target promises, with real logins; each driver's tests are a subclass."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from lunr.common import errors
from lunr.storage.targets.base import Export, Target
from tests.support.waiting import wait_until
from tests.system.storage import iscsi

OTHER = "iqn.2026-11.test:other"

#: Makes a volume of a name and size, and makes one larger.
MakeVolume = Callable[[str, int], Path]
GrowVolume = Callable[[Path, int], None]


def export_of(path: Path, volume_id: str = "v1") -> Export:
    """An export of `path` as volume `volume_id` to :data:`iscsi.INITIATOR`."""
    return Export(
        volume_id=volume_id,
        path=path,
        iqn=f"iqn.2026-11.io.lunr:{volume_id}",
        lun=1,
        username="user1",
        password="secret-of-12",
        serial=volume_id,
        initiator=iscsi.INITIATOR,
    )


class TargetContract:
    """What a target promises.

    Takes ``target``, its ``portal`` on 127.0.0.1, ``make_volume``, ``grow_volume``
    and an ``export`` of a volume that `make_volume` made.
    """

    #: Whether it takes exports that name an address and no initiator.
    ADDRESS_ALONE: ClassVar[bool] = True
    #: Whether it refuses a wrong address at the login, or cuts the session at the next look.
    ADDRESS_AT_LOGIN: ClassVar[bool] = True
    #: How many exports are made at once.
    MANY: ClassVar[int] = 24

    def gets_in(
        self, target: Target, portal: str, export: Export, initiator: str = iscsi.INITIATOR
    ) -> bool:
        """Whether a login succeeds and is let stay."""
        if not iscsi.admits(portal, export, initiator=initiator):
            return False
        if self.ADDRESS_AT_LOGIN or export.ip is None:
            return True
        with iscsi.session(portal, export, initiator):
            return target.exports()[export.volume_id] != []

    def test_the_right_name_and_secret_get_in(
        self, target: Target, portal: str, export: Export
    ) -> None:
        target.check()
        assert target.exports() == {}
        target.ensure(export)
        assert "v1]" in iscsi.inquire(portal, export)
        # The session that asked may be just ending.
        wait_until(lambda: target.exports() == {"v1": []}, what="an export without sessions")

    def test_a_wrong_secret_does_not(self, target: Target, portal: str, export: Export) -> None:
        target.ensure(export)
        for wrong in ("secret-of-13", "", "SECRET-OF-12"):
            assert not iscsi.admits(portal, export, password=wrong)
        without = iscsi.url(portal, export).replace(f"{export.username}%{export.password}@", "")
        done = subprocess.run(
            ["iscsi-inq", "-i", iscsi.INITIATOR, without], capture_output=True, check=False
        )
        assert b"Failed" in done.stdout + done.stderr

    def test_another_account_does_not(
        self, target: Target, portal: str, export: Export, make_volume: MakeVolume
    ) -> None:
        target.ensure(export)
        other = dataclasses.replace(export_of(make_volume("v2", 1 << 20), "v2"), username="user2")
        target.ensure(other)
        assert iscsi.admits(portal, other)
        assert not iscsi.admits(portal, dataclasses.replace(export, username="user2"))

    @pytest.mark.parametrize(
        ("initiator", "ip", "right_name", "wrong_name"),
        [
            (iscsi.INITIATOR, None, True, False),
            (None, "127.0.0.1", True, True),
            (None, "127.0.0.2", False, False),
            (iscsi.INITIATOR, "127.0.0.1", True, False),
            (iscsi.INITIATOR, "127.0.0.2", False, False),
            (OTHER, "127.0.0.1", False, True),
            (iscsi.INITIATOR, "::1", False, False),
            (None, "fe80::1", False, False),
        ],
    )
    def test_name_and_address_must_both_match(
        self,
        target: Target,
        portal: str,
        export: Export,
        initiator: str | None,
        ip: str | None,
        right_name: bool,
        wrong_name: bool,
    ) -> None:
        export = dataclasses.replace(export, initiator=initiator, ip=ip)
        if initiator is None and not self.ADDRESS_ALONE:
            with pytest.raises(errors.LunrError, match="initiator") as caught:
                target.ensure(export)
            assert caught.value.status == 400
            assert target.exports() == {}
            return
        target.ensure(export)
        assert self.gets_in(target, portal, export) is right_name
        assert self.gets_in(target, portal, export, OTHER) is wrong_name

    def test_a_changed_export_is_exactly_the_new_one(
        self, target: Target, portal: str, export: Export
    ) -> None:
        changes: list[dict[str, str | None]] = [
            {"initiator": None, "ip": "127.0.0.1"},
            {"initiator": OTHER, "ip": "127.0.0.1"},
            {"initiator": OTHER, "ip": None},
            {"initiator": iscsi.INITIATOR, "ip": "127.0.0.2"},
            {"initiator": iscsi.INITIATOR, "ip": None},
            {"password": "another-secret"},
            {"username": "user9"},
        ]
        target.ensure(export)
        old = export
        for change in changes:
            new = dataclasses.replace(old, **change)
            if new.initiator is None and not self.ADDRESS_ALONE:
                continue
            target.ensure(new)
            target.ensure(new)
            for name in (iscsi.INITIATOR, OTHER):
                expected = new.admits({"initiator": name, "ip": "127.0.0.1"})
                assert self.gets_in(target, portal, new, name) is expected, (change, name)
            if (old.username, old.password) != (new.username, new.password):
                assert not iscsi.admits(portal, old)
            old = new
        assert list(target.exports()) == ["v1"]

    def test_a_changed_path_is_what_is_read(
        self, target: Target, portal: str, export: Export, make_volume: MakeVolume
    ) -> None:
        target.ensure(export)
        target.ensure(dataclasses.replace(export, path=make_volume("other", 16 << 20)))
        assert capacity(portal, export) == 16 << 20

    def test_a_larger_volume_is_seen_by_who_uses_it(
        self, target: Target, portal: str, export: Export, grow_volume: GrowVolume
    ) -> None:
        target.resize("v1")  # it is not exported
        target.ensure(export)
        with iscsi.session(portal, export) as qemu:
            assert qemu.stdin is not None
            qemu.stdin.write("aio_write -q 0 64k\n" * 20)
            qemu.stdin.flush()
            grow_volume(export.path, 16 << 20)
            target.resize("v1")
            assert capacity(portal, export) == 16 << 20
            iscsi.read(qemu)  # its session is there, or there again
            assert len(target.exports()["v1"]) == 1
        assert "v1]" in iscsi.inquire(portal, export)

    def test_sessions_are_seen_and_keep_the_target(
        self, target: Target, portal: str, export: Export
    ) -> None:
        target.ensure(export)
        with iscsi.session(portal, export):
            assert target.exports() == {"v1": [{"initiator": iscsi.INITIATOR, "ip": "127.0.0.1"}]}
            with pytest.raises(errors.InUse, match=iscsi.INITIATOR):
                target.remove("v1")
            assert iscsi.admits(portal, export)  # all as before
        wait_until(lambda: target.exports() == {"v1": []}, what="the session is gone")
        target.remove("v1")
        assert target.exports() == {}

    def test_ensure_leaves_a_session_alone_that_is_admitted(
        self, target: Target, portal: str, export: Export
    ) -> None:
        target.ensure(export)
        with iscsi.session(portal, export) as qemu:
            target.ensure(export)
            assert len(target.exports()["v1"]) == 1
            target.ensure(dataclasses.replace(export, initiator=OTHER))
            assert qemu.poll() is None
            assert target.exports()["v1"] == []

    def test_force_removes_under_load(self, target: Target, portal: str, export: Export) -> None:
        target.ensure(export)
        with iscsi.session(portal, export) as one, iscsi.session(portal, export) as two:
            for process in (one, two):
                assert process.stdin is not None
                process.stdin.write("aio_write -q 0 8M\n" * 50)
                process.stdin.flush()
            target.remove("v1", force=True)
            assert target.exports() == {}
            assert not iscsi.admits(portal, export)

    def test_remove_runs_twice(self, target: Target, portal: str, export: Export) -> None:
        target.ensure(export)
        for force in (False, True, False):
            target.remove("v1", force)
        assert not iscsi.admits(portal, export)

    def test_many_at_once(
        self, target: Target, portal: str, export: Export, make_volume: MakeVolume
    ) -> None:
        exports = [
            dataclasses.replace(
                export_of(make_volume(name, 1 << 20), name), username=f"user-{name}"
            )
            for name in (f"m{number}" for number in range(self.MANY))
        ]
        failures: list[Exception] = []

        def work(mine: list[Export]) -> None:
            try:
                for one in mine:
                    target.ensure(one)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(exports[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert set(target.exports()) == {one.volume_id for one in exports}
        last = exports[-1]
        assert f"{last.serial}]" in iscsi.inquire(portal, last)
        for one in exports:
            target.remove(one.volume_id)
        assert target.exports() == {}

    def test_no_secret_is_in_any_error_or_log(
        self, target: Target, export: Export, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        target.ensure(export)
        gone = dataclasses.replace(
            export, path=export.path.with_name("missing"), password="hush-hush"
        )
        with pytest.raises(errors.LunrError) as caught:
            target.ensure(gone)
        assert "hush" not in caplog.text + str(caught.value) + repr(gone)
        assert export.password not in caplog.text + repr(export)


def capacity(portal: str, export: Export) -> int:
    """Bytes of the disk, as whoever logs in now sees it."""
    done = subprocess.run(
        ["iscsi-readcapacity16", "-i", iscsi.INITIATOR, "-s", iscsi.url(portal, export)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
