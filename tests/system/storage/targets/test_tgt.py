"""tgtd, with real logins: what every target promises, and what is tgtd's own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common import errors
from lunr.storage.targets.base import Export, LimitsUnavailable, TargetFailed, TargetUnavailable
from lunr.storage.targets.tgt.control import Mode, Op, parse_targets, request
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd, need_command
from tests.support.target_contract import (
    OTHER,
    GrowVolume,
    MakeVolume,
    TargetContract,
    export_of,
)
from tests.system.storage import iscsi
from tests.system.storage.raw_initiator import RawInitiator


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


@pytest.fixture
def make_volume(pool_folder: Path) -> MakeVolume:
    def make(name: str, size: int) -> Path:
        path = pool_folder / name
        path.touch()
        os.truncate(path, size)
        return path

    return make


@pytest.fixture
def grow_volume() -> GrowVolume:
    return os.truncate


@pytest.fixture
def export(make_volume: MakeVolume) -> Export:
    need_command("iscsi-inq", "libiscsi-bin")
    need_command("qemu-io", "qemu-utils and qemu-block-extra")
    return export_of(make_volume("v1", 8 << 20))


@pytest.fixture
def portal(tgtd: Tgtd) -> str:
    return tgtd.portal


@pytest.fixture
def target(tgtd: Tgtd, pool_folder: Path) -> Iterator[TgtTarget]:
    yield TgtTarget(tgtd.socket, pool_folder)


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


class _Late(TgtTarget):
    """Its connections are not seen before `late` has sent a command to the offline target.

    So it is for one whose login is under way when the target goes offline.
    """

    late: subprocess.Popen[str] | None = None
    is_offline = False

    def _set_state(self, tid: int, state: str) -> None:
        super()._set_state(tid, state)
        self.is_offline = state == "offline"
        if self.is_offline and self.late is not None:
            iscsi.begin_read(self.late)
            time.sleep(0.3)  # no answer will come that could be waited for

    def _disconnect_all(self, iqn: str) -> None:
        if self.late is None or not self.is_offline:
            super()._disconnect_all(iqn)


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

    def test_a_look_is_cheap(self, target: TgtTarget, export: Export) -> None:
        target.ensure(export)
        started = time.monotonic()
        for _ in range(100):
            target.exports()
        assert time.monotonic() - started < 2.0  # tgtadm takes more than that

    @pytest.mark.parametrize("work", ["resize", "reopen", "ensure"])
    def test_a_volume_that_could_not_be_opened_again_is_not_exported_until_it_is_put_back(
        self, target: TgtTarget, tgtd: Tgtd, export: Export, work: str
    ) -> None:
        target.ensure(export)
        away = export.path.rename(export.path.with_name("away"))
        with pytest.raises(TargetFailed):
            if work == "resize":
                target.resize("v1")
            elif work == "reopen":
                target.reopen(export)
            else:
                target.ensure(dataclasses.replace(export, path=export.path.with_name("other")))
        assert target.exports() == {}
        assert not iscsi.admits(tgtd.portal, export)
        away.rename(export.path)
        target.ensure(export)
        assert target.exports() == {"v1": []}
        assert iscsi.admits(tgtd.portal, export)

    @pytest.mark.parametrize("work", ["resize", "reopen", "ensure"])
    def test_a_command_that_came_while_the_target_was_offline_is_answered(
        self, tgtd: Tgtd, export: Export, make_volume: MakeVolume, work: str
    ) -> None:
        target = _Late(tgtd.socket, export.path.parent)
        target.ensure(export)
        with iscsi.session(tgtd.portal, export) as qemu:
            target.late = qemu
            if work == "resize":
                target.resize("v1")
            elif work == "reopen":
                target.reopen(export)
            else:
                target.ensure(dataclasses.replace(export, path=make_volume("other", 16 << 20)))
            iscsi.wait_read(qemu)

    @pytest.mark.parametrize("work", ["resize", "reopen", "ensure"])
    def test_a_login_under_way_while_it_is_offline_waits_for_no_answer_that_never_comes(
        self, target: TgtTarget, tgtd: Tgtd, export: Export, make_volume: MakeVolume, work: str
    ) -> None:
        """tgtd asks at a login's first step whether the target is offline, and never again."""
        target.ensure(export)
        other = dataclasses.replace(export, path=make_volume("other", 8 << 20))
        initiator = RawInitiator(tgtd.portal, export)
        initiator.begin_login()
        open_unit = target._open

        def open_later(*args: Any) -> None:
            initiator.finish_login()
            initiator.send_read()  # tgtd swallows it
            open_unit(*args)

        target._open = open_later  # type: ignore[method-assign]
        try:
            if work == "resize":
                target.resize("v1")
            elif work == "reopen":
                target.reopen(other)
            else:
                target.ensure(other)
            assert initiator.is_cut_off()
        finally:
            initiator.close()
        assert iscsi.admits(tgtd.portal, export)

    def test_a_refused_remove_takes_nothing_offline(self, tgtd: Tgtd, export: Export) -> None:
        target = _Late(tgtd.socket, export.path.parent)
        target.ensure(export)
        with iscsi.session(tgtd.portal, export) as qemu:
            target.late = qemu
            with pytest.raises(errors.InUse, match=iscsi.INITIATOR):
                target.remove("v1")
            assert not target.is_offline
            iscsi.read(qemu)

    def test_a_file_has_no_limits(self, target: TgtTarget, tgtd: Tgtd, export: Export) -> None:
        target.ensure(export)
        with pytest.raises(LimitsUnavailable, match="v1"):
            target.ensure(dataclasses.replace(export, read_iops=100))
        assert not target.limits_io()
        assert iscsi.admits(tgtd.portal, export)  # all as before
