"""Every target passes this class, with real logins; here tgtd."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.storage.targets.base import Export, Target, TargetUnavailable
from lunr.storage.targets.tgt import TgtTarget
from lunr.storage.targets.tgt_control import Mode, Op, parse_targets, request
from tests.support.services import Tgtd, need_command
from tests.support.waiting import wait_until
from tests.system.storage import iscsi

OTHER = "iqn.2026-11.test:other"


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


@pytest.fixture
def export(pool_folder: Path) -> Export:
    need_command("iscsi-inq", "libiscsi-bin")
    need_command("qemu-io", "qemu-utils and qemu-block-extra")
    path = pool_folder / "v1"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    return Export(
        volume_id="v1",
        path=path,
        iqn="iqn.2026-11.io.lunr:v1",
        lun=1,
        username="user1",
        password="secret-of-12",
        serial="v1",
        initiator=iscsi.INITIATOR,
    )


@pytest.fixture
def portal(tgtd: Tgtd) -> str:
    return tgtd.portal


@pytest.fixture
def target(tgtd: Tgtd, pool_folder: Path) -> Iterator[TgtTarget]:
    yield TgtTarget(tgtd.socket, pool_folder)


class TargetContract:
    """What a target promises. Takes ``target``, its ``portal`` on 127.0.0.1, and an ``export``."""

    def test_the_right_name_and_secret_get_in(
        self, target: Target, portal: str, export: Export
    ) -> None:
        target.check()
        assert target.exports() == {}
        target.ensure(export)
        assert " v1]" in iscsi.inquire(portal, export)
        assert target.exports() == {"v1": []}

    def test_a_wrong_secret_does_not(self, target: Target, portal: str, export: Export) -> None:
        target.ensure(export)
        for wrong in ("secret-of-13", "", "SECRET-OF-12"):
            assert not iscsi.admits(portal, export, password=wrong)
        without = iscsi.url(portal, export).replace(f"{export.username}%{export.password}@", "")
        done = subprocess.run(
            ["iscsi-inq", "-i", iscsi.INITIATOR, without], capture_output=True, check=False
        )
        assert b"Failed" in done.stdout + done.stderr

    def test_another_account_does_not(self, target: Target, portal: str, export: Export) -> None:
        target.ensure(export)
        path = export.path.with_name("v2")
        path.write_bytes(bytes(1 << 20))
        other = dataclasses.replace(
            export, volume_id="v2", path=path, iqn="iqn.2026-11.io.lunr:v2", username="user2"
        )
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
        target.ensure(export)
        assert iscsi.admits(portal, export) is right_name
        assert iscsi.admits(portal, export, initiator=OTHER) is wrong_name

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
            target.ensure(new)
            target.ensure(new)
            for name in (iscsi.INITIATOR, OTHER):
                expected = new.admits({"initiator": name, "ip": "127.0.0.1"})
                assert iscsi.admits(portal, new, initiator=name) is expected, (change, name)
            if (old.username, old.password) != (new.username, new.password):
                assert not iscsi.admits(portal, old)
            old = new
        assert list(target.exports()) == ["v1"]

    def test_a_changed_path_is_what_is_read(
        self, target: Target, portal: str, export: Export
    ) -> None:
        target.ensure(export)
        path = export.path.with_name("other")
        path.write_bytes(bytes(16 << 20))
        target.ensure(dataclasses.replace(export, path=path))
        done = subprocess.run(
            ["iscsi-readcapacity16", "-i", iscsi.INITIATOR, "-s", iscsi.url(portal, export)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == 16 << 20

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
            target.ensure(dataclasses.replace(export, password="another-secret"))
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

    def test_many_at_once(self, target: Target, portal: str, export: Export) -> None:
        exports = []
        for number in range(24):
            path = export.path.with_name(f"m{number}")
            path.write_bytes(bytes(1 << 20))
            exports.append(
                dataclasses.replace(
                    export,
                    volume_id=f"m{number}",
                    path=path,
                    iqn=f"iqn.2026-11.io.lunr:m{number}",
                    username=f"u{number}",
                    serial=f"m{number}",
                )
            )
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
        assert " m17]" in iscsi.inquire(portal, exports[17])
        for one in exports:
            target.remove(one.volume_id)
        assert target.exports() == {}


class _Killed(BaseException):
    pass


class _Mortal(TgtTarget):
    """The target of a new process, which can be killed after so many requests."""

    def __init__(self, tgtd: Tgtd, export: Export) -> None:
        super().__init__(tgtd.socket, export.path.parent)
        self._left = 1 << 30

    def killed_at(self, steps: int, work: str, export: Export) -> bool:
        self._left = steps
        try:
            if work == "remove":
                self.remove(export.volume_id, force=True)
            else:
                self.ensure(export)
        except _Killed:
            return True
        return False

    def _request(self, mode: Mode, op: Op, params: str = "", **numbers: int) -> str:
        answer = super()._request(mode, op, params, **numbers)
        self._left -= 1
        if not self._left:
            raise _Killed
        return answer


class TestTgt(TargetContract):
    """tgtd."""

    def test_after_a_restart_nothing_is_there_and_ensure_puts_it_back(
        self, target: TgtTarget, tgtd: Tgtd, export: Export
    ) -> None:
        target.ensure(export)
        tgtd.kill()
        with pytest.raises(TargetUnavailable, match=str(tgtd.socket)):
            target.exports()
        tgtd.start()
        assert target.exports() == {}
        target.ensure(export)
        assert iscsi.admits(tgtd.portal, export)

    @pytest.mark.parametrize("both", [False, True])
    @pytest.mark.parametrize("work", ["make", "change", "remove"])
    def test_killed_between_any_two_requests_it_is_never_open(
        self, tgtd: Tgtd, export: Export, work: str, both: bool
    ) -> None:
        """After each request nobody unknown gets in, and the next run ends the work."""
        old = dataclasses.replace(export, ip="127.0.0.1" if both else None)
        new = dataclasses.replace(
            export, initiator=None if both else OTHER, ip="127.0.0.1", password="another-secret"
        )
        bad = dataclasses.replace(export, password="bad-bad-bad-bad")
        for steps in range(1, 60):
            _Mortal(tgtd, export).remove("v1", force=True)
            if work != "make":
                _Mortal(tgtd, export).ensure(old)
            killed = _Mortal(tgtd, export).killed_at(steps, work, new)
            for name in (iscsi.INITIATOR, OTHER):
                assert not iscsi.admits(tgtd.portal, bad, initiator=name), steps
            if work == "make" and new.initiator:
                assert not iscsi.admits(tgtd.portal, new), steps
            _Mortal(tgtd, export).killed_at(1000, work, new)
            if work == "remove":
                assert request(tgtd.socket, Mode.TARGET, Op.SHOW, tid=-1) == ""
                assert export.username not in request(tgtd.socket, Mode.ACCOUNT, Op.SHOW)
            else:
                assert iscsi.admits(tgtd.portal, new, initiator=OTHER), steps
                assert iscsi.admits(tgtd.portal, new) is (new.initiator is None), steps
            if not killed:
                return
        pytest.fail(f"{work} did not end")

    def test_a_disk_is_known_by_its_volume(
        self, target: TgtTarget, tgtd: Tgtd, export: Export
    ) -> None:
        """The NAA designators, by which udev and multipath tell disks apart, differ in full."""
        seen = set()
        for volume_id in (
            "11111111-aaaa-4aaa-8aaa-000000000001",
            "11111111-aaaa-4aaa-8aaa-000000000002",
            "x" * 64,
            "x" * 63 + "y",
        ):
            one = dataclasses.replace(
                export,
                volume_id=volume_id,
                iqn=f"iqn.2026-11.io.lunr:{volume_id}",
                serial=volume_id,
            )
            target.ensure(one)
            page = ["iscsi-inq", "-i", iscsi.INITIATOR, "-e", "1", "-c"]
            where = iscsi.url(tgtd.portal, one)
            designators = subprocess.run(
                [*page, "131", where], capture_output=True, check=True
            ).stdout.split(b"Designator:[")[1]
            serial = iscsi.inquire(tgtd.portal, one)
            assert len(volume_id) > 36 or f"[{volume_id}]" in serial
            seen |= {designators, serial.encode()}
            target.remove(volume_id)
        assert len(seen) == 8

    def test_other_targets_of_the_same_daemon_are_left_alone(
        self, target: TgtTarget, tgtd: Tgtd, export: Export, tmp_path: Path
    ) -> None:
        foreign = tmp_path / "foreign"
        foreign.write_bytes(bytes(1 << 20))
        request(tgtd.socket, Mode.TARGET, Op.NEW, "targetname=iqn.x:v1", tid=1)
        request(tgtd.socket, Mode.DEVICE, Op.NEW, f"path={foreign}", tid=1, lun=1)
        assert target.exports() == {}
        target.ensure(export)
        target.remove("v1", force=True)
        shown = parse_targets(request(tgtd.socket, Mode.TARGET, Op.SHOW, tid=-1))
        assert [one.iqn for one in shown] == ["iqn.x:v1"]

    def test_no_secret_is_in_any_argument_or_log(
        self, target: TgtTarget, export: Export, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        target.ensure(export)
        with pytest.raises(errors.LunrError) as caught:
            target.ensure(
                dataclasses.replace(
                    export, path=export.path.with_name("missing"), password="hush-hush"
                )
            )
        assert "hush" not in caplog.text + str(caught.value) + repr(export)
        assert export.password not in caplog.text + repr(export)

    def test_a_look_is_cheap(self, target: TgtTarget, export: Export) -> None:
        target.ensure(export)
        started = time.monotonic()
        for _ in range(100):
            target.exports()
        assert time.monotonic() - started < 2.0  # tgtadm takes more than that
