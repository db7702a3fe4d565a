"""What is LIO's own: states half made, others' targets, addresses, names, files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common import errors
from lunr.storage.targets.base import Export, LimitsUnavailable, TargetFailed, TargetUnavailable
from lunr.storage.targets.lio import tree
from lunr.storage.targets.lio.target import LioTarget
from tests.support.initiator import sh
from tests.support.slices import SLICES, Slices
from tests.support.target_contract import OTHER, capacity, export_of
from tests.support.waiting import PATIENCE, free_port, wait_until
from tests.system.storage import iscsi
from tests.vm.storage.conftest import lio_left_over

MIB = 1 << 20
STEPS = ("mkdir", "rmdir", "unlink", "symlink_to", "write_text")


@pytest.fixture
def export(slices: Slices) -> Export:
    return export_of(slices.make("v1", 8 * MIB))


class _Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the process do so many changes to configfs, and then no more."""
    left = steps

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Path, *args: Any, **options: Any) -> Any:
            nonlocal left
            if not self.is_relative_to(tree.ROOT):
                return real(self, *args, **options)
            if not left:
                raise _Killed
            left -= 1
            return real(self, *args, **options)

        return step

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, counting(getattr(Path, name)))
        yield


def state() -> dict[str, str]:
    """All of lunr's in configfs that decides who sees what."""
    found = {}
    for disk in tree.disks().values():
        for name in ("alias", "udev_path", "enable", "wwn/vpd_unit_serial", "attrib/emulate_tpu"):
            found[f"{disk}/{name}"] = (disk / name).read_text()
    for group in tree.TARGETS.glob("*/tpgt_1"):
        for name in ("enable", "attrib/authentication", "attrib/generate_node_acls"):
            found[f"{group}/{name}"] = (group / name).read_text()
        for portal in (group / "np").iterdir():
            found[str(portal)] = ""
        for acl in (group / "acls").iterdir():
            for name in ("auth/userid", "auth/password", "tag"):
                found[f"{acl}/{name}"] = (acl / name).read_text().strip()
        for link in (*group.glob("lun/*/*"), *group.glob("acls/*/lun_*/*")):
            if link.is_symlink():
                found[str(link)] = os.readlink(link)
    return found


def who_may_enter() -> set[tuple[str, str, str]]:
    """The name, CHAP name and secret that LIO would let in now."""
    found = set()
    for group in tree.TARGETS.glob("*/tpgt_1"):
        if (group / "enable").read_text().strip() == "0":
            continue
        assert (group / "attrib/authentication").read_text().strip() == "1"
        assert (group / "attrib/generate_node_acls").read_text().strip() == "0"
        for acl in (group / "acls").iterdir():
            user = (acl / "auth/userid").read_text().strip()
            if user not in ("", "NULL"):
                found.add((acl.name, user, (acl / "auth/password").read_text().strip()))
    return found


def test_a_session_outlives_its_secret(lio: LioTarget, lio_portal: str, export: Export) -> None:
    lio.ensure(export)
    with iscsi.session(lio_portal, export) as qemu:
        lio.ensure(dataclasses.replace(export, password="another-secret"))
        assert len(lio.exports()["v1"]) == 1
        iscsi.read(qemu)


@pytest.mark.parametrize("work", ["make", "change", "remove"])
def test_killed_between_any_two_steps_it_is_never_open(
    lio: LioTarget, lio_portal: str, export: Export, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """After each step nobody unknown gets in, and the next run ends the work."""

    def keys(one: Export) -> tuple[str, str, str]:
        return (str(one.initiator), one.username, one.password)

    new = dataclasses.replace(
        export, initiator=OTHER, ip="127.0.0.1", username="user9", password="another-secret", lun=7
    )
    lio.ensure(new)
    finished = state()
    lio.remove("v1", force=True)
    for steps in range(100):
        if work != "make":
            lio.ensure(export)
        process = LioTarget(lio_portal, SLICES)
        killed = False
        try:
            with killed_after(steps, monkeypatch):
                if work == "remove":
                    process.remove("v1")
                else:
                    process.ensure(new)
        except _Killed:
            killed = True
        allowed = {keys(new)} if work == "make" else {keys(new), keys(export)}
        assert who_may_enter() <= allowed, steps
        again = LioTarget(lio_portal, SLICES)
        if work != "remove":
            again.ensure(new)
            assert state() == finished, steps
            assert iscsi.admits(lio_portal, new, OTHER) or steps % 16
        again.remove("v1")
        assert lio_left_over() == [], steps
        if not killed:
            assert steps > 5
            return
    pytest.fail(f"{work} did not end")


def test_targets_of_others_are_left_alone(lio: LioTarget, export: Export, slices: Slices) -> None:
    disk = tree.ROOT / "core" / "iblock_0" / "v1"
    disk.parent.mkdir()
    disk.mkdir()
    (disk / "control").write_text(f"udev_path={slices.make('v2', MIB)}")
    (disk / "enable").write_text("1")
    foreign = tree.TARGETS / export.iqn
    foreign.mkdir()
    (foreign / "tpgt_1").mkdir()
    (foreign / "tpgt_1" / "lun" / "lun_0").mkdir()
    link = foreign / "tpgt_1" / "lun" / "lun_0" / "disk"
    link.symlink_to(disk)
    try:
        assert lio.exports() == {}
        with pytest.raises(TargetFailed, match="not lunr's"):
            lio.ensure(export)
        assert lio.exports() == {}
        other = dataclasses.replace(export, iqn="iqn.2026-11.io.lunr.two:v1")
        lio.ensure(other)
        lio.remove("v1", force=True)
        assert link.resolve() == disk
        assert len(lio_left_over()) == 2
    finally:
        link.unlink()
        for folder in (link.parent, foreign / "tpgt_1", foreign, disk, disk.parent):
            folder.rmdir()


def test_sessions_from_elsewhere_are_cut(
    lio: LioTarget, lio_portal: str, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    export = dataclasses.replace(export, ip="127.0.0.9")
    lio.ensure(export)
    with iscsi.session(lio_portal, export):
        assert LioTarget(lio_portal, SLICES).exports() == {"v1": []}  # also a fresh agent's
    assert "127.0.0.1" in caplog.text
    assert export.password not in caplog.text


def test_while_nobody_looks_nobody_gets_in_to_whom_an_address_is_demanded(
    lio: LioTarget, lio_portal: str, export: Export, slices: Slices
) -> None:
    export = dataclasses.replace(export, ip="127.0.0.1")
    other = dataclasses.replace(export_of(slices.make("v2", 8 * MIB), "v2"), username="user2")
    lio.ensure(export)
    lio.ensure(other)
    with iscsi.session(lio_portal, export) as qemu:
        lio.close()
        assert not iscsi.admits(lio_portal, export)
        assert iscsi.admits(lio_portal, other)
        iscsi.read(qemu)  # who was logged in goes on
        LioTarget(lio_portal, SLICES).ensure(export)
        assert iscsi.admits(lio_portal, export)
        iscsi.read(qemu)


def test_an_export_whose_disk_hangs_keeps_no_other_waiting(
    lio: LioTarget, lio_portal: str, export: Export, slices: Slices
) -> None:
    other = dataclasses.replace(export_of(slices.make("v2", 8 * MIB), "v2"), username="user2")
    done: list[bool] = []

    def work() -> None:
        lio.ensure(other)
        lio.exports()
        done.append(iscsi.admits(lio_portal, other))
        lio.remove("v2", force=True)
        done.append("v2" in lio.exports())

    lio.ensure(export)
    with iscsi.session(lio_portal, export) as qemu:
        assert qemu.stdin is not None
        sh("dmsetup", "suspend", "--nolockfs", export.path.name)
        try:
            qemu.stdin.write("aio_write -q 0 64k\n")
            qemu.stdin.flush()
            time.sleep(1.0)
            removing = threading.Thread(target=lio.remove, args=("v1", True))
            removing.start()
            removing.join(2.0)
            assert removing.is_alive()
            beside = threading.Thread(target=work)
            beside.start()
            beside.join(PATIENCE)
            assert done == [True, False]
            assert removing.is_alive()
        finally:
            sh("dmsetup", "resume", export.path.name)
        for thread in (removing, beside):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_sessions_that_hide_behind_another_are_cut(
    lio: LioTarget, lio_portal: str, export: Export
) -> None:
    """The kernel describes only the last session of a name: another is cut with it."""
    lio.ensure(dataclasses.replace(export, ip="127.0.0.1"))
    with iscsi.session(lio_portal, export), iscsi.session(lio_portal, export):
        assert len(lio.exports()["v1"]) == 2
        assert lio.exports()["v1"] == []
    wait_until(lambda: lio.exports()["v1"] == [], what="those that came back are gone")
    lio.ensure(export)
    with iscsi.session(lio_portal, export), iscsi.session(lio_portal, export):
        for _ in range(3):
            assert len(lio.exports()["v1"]) == 2
        with pytest.raises(errors.InUse):
            lio.remove("v1")


def test_names_differ_by_case_and_underscores(
    lio: LioTarget, lio_portal: str, slices: Slices
) -> None:
    """Volumes' ids do; initiators' names do not (RFC 7143, 4.2.7)."""
    exports = [export_of(slices.make(f"n{i}", MIB), name) for i, name in enumerate(("A_b", "a_b"))]
    for export in exports:
        lio.ensure(dataclasses.replace(export, initiator="iqn.X:Big"))
    assert set(lio.exports()) == {"A_b", "a_b"}
    for export in exports:
        assert iscsi.inquire(lio_portal, export, "iqn.x:bIG").endswith(f"{export.volume_id}]")


def test_discovery_tells_a_target_to_its_initiator_alone(
    lio: LioTarget, lio_portal: str, export: Export
) -> None:
    lio.ensure(export)

    def discovered(name: str) -> str:
        return sh("iscsi-ls", "-i", name, f"iscsi://{lio_portal}/", check=False)

    assert export.iqn in discovered(iscsi.INITIATOR)
    assert export.iqn not in discovered(OTHER)


def test_an_ipv6_portal(lio: LioTarget, export: Export) -> None:
    port = free_port()
    target = LioTarget(f"[0:0:0::1]:{port}", SLICES)
    target.ensure(dataclasses.replace(export, ip="::1"))
    with iscsi.session(f"[::1]:{port}", export):
        assert target.exports()["v1"] == [{"initiator": iscsi.INITIATOR, "ip": "::1"}]


def test_a_volume_that_is_a_file(lio: LioTarget, lio_portal: str, tmp_path: Path) -> None:
    path = tmp_path / "v1"
    path.write_bytes(bytes(8 * MIB))
    export = export_of(path)
    with pytest.raises(LimitsUnavailable):
        lio.ensure(dataclasses.replace(export, write_iops=5))
    lio.ensure(export)
    os.truncate(path, 16 * MIB)
    lio.resize("v1")
    assert capacity(lio_portal, export) == 16 * MIB
    disk = tree.disks()["v1"]
    assert "O_DSYNC" in (disk / "info").read_text()  # what is acknowledged is on the disk


def test_what_is_missing_is_said(lio: LioTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tree, "ROOT", Path("/sys/kernel/config/nothing"))
        with pytest.raises(TargetUnavailable, match="mount -t configfs"):
            lio.check()
    monkeypatch.setattr("lunr.storage.targets.lio.target._MODULES", ("no_such_module",))
    with pytest.raises(TargetUnavailable, match="no_such_module"):
        lio.check()


def test_a_busy_portal_is_named(slices: Slices, lio: LioTarget, export: Export) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        target = LioTarget(where, SLICES)
        with pytest.raises(TargetFailed, match=where):
            target.ensure(export)
    target.ensure(export)


def test_a_look_is_cheap(lio: LioTarget, slices: Slices) -> None:
    for number in range(4):
        lio.ensure(export_of(slices.make(f"m{number}", MIB), f"m{number}"))
    started = time.monotonic()
    for _ in range(25):
        lio.exports()
    # 100 exports looked at, on an emulated processor.
    assert time.monotonic() - started < 2.0
