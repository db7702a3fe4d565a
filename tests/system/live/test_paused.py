"""Backups of a machine that does not run: QEMU keeps the descriptors of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.live import errors
from lunr.live.qemu import cleanup, names
from lunr.live.qemu.qmp import Monitor
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Disk, Machine


@pytest.fixture(params=["", ",share-rw=on"], ids=["own", "shared"])
def paused(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    class Shared(Disk):
        """A disk that another device may use too: QEMU would let it use a wrong one."""

        def options(self) -> list[str]:
            *rest, device = super().options()
            return [*rest, device + request.param]

    disks: list[Disk] = [
        Shared(name, tmp_path / f"{name}.raw", MIB, "raw", "virtio") for name in ("a", "b")
    ]
    machine = Machine(tmp_path, disks, "-S")
    yield machine
    machine.end()


def used_nodes(machine: Machine) -> dict[str, str]:
    return {
        block["qdev"].split("/")[3]: block["inserted"]["node-name"]
        for block in machine.guest.execute("query-block")
    }


def test_disk_after_disk(paused: Machine, vault: Vault) -> None:
    own = {"a": "node-a", "b": "node-b"}
    for number, disk in enumerate((*paused.disks, *reversed(paused.disks))):
        paused.write(disk, 0, 4096, number + 1)
        group = vault.backup(paused, disks=[disk.name])
        assert used_nodes(paused) == own
        assert vault.restored(group) == {disk.name: bytes(disk.content)}
    assert len(paused.guest.execute("query-fdsets")) > 1, "QEMU keeps no notes: nothing is shown"


def test_a_filter_without_a_note_stays(paused: Machine, tmp_path: Path) -> None:
    scratch = paused.guest.execute
    (tmp_path / "scratch").write_bytes(bytes(MIB))
    file = {"driver": "file", "filename": str(tmp_path / "scratch")}
    scratch("blockdev-add", {"driver": "raw", "node-name": names.scratch(0), "file": file})
    filter_node = {"driver": "copy-before-write", "node-name": names.filter_of(0)}
    scratch("blockdev-add", {**filter_node, "file": "node-a", "target": names.scratch(0)})
    scratch(
        "qom-set", {"path": paused.disks[0].qdev, "property": "drive", "value": "lunr-0-filter"}
    )
    with (
        Monitor.open(paused.qmp) as monitor,
        pytest.raises(errors.FilterLeft, match="lunr-0-filter"),
    ):
        cleanup.clear(monitor)
    assert used_nodes(paused) == {"a": "lunr-0-filter", "b": "node-b"}
