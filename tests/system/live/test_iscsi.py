"""Disks over iSCSI, from lunr's own target."""

from __future__ import annotations

import random
from pathlib import Path

from lunr.storage.targets.base import Export
from lunr.storage.targets.tgt import TgtTarget
from tests.support.services import Tgtd
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Disk, Machine
from tests.system.live.test_backup import ways
from tests.system.storage import iscsi


class Remote(Disk):
    """A raw disk that QEMU reaches by iSCSI."""

    def __init__(self, name: str, path: Path, size: int, target: TgtTarget, portal: str) -> None:
        super().__init__(name, path, size, "raw", "virtio")
        self._portal = portal
        self._export = Export(
            volume_id=name,
            path=path,
            iqn=f"iqn.2026-11.io.lunr:{name}",
            lun=1,
            username=name,
            password="secretsecret",
            initiator=iscsi.INITIATOR,
            ip=None,
            serial=name,
        )
        self._target = target
        self.serve()

    def serve(self) -> None:
        """Have the target export it (again)."""
        self._target.ensure(self._export)

    def options(self) -> list[str]:
        export = self._export
        file = (
            f"file.driver=iscsi,file.transport=tcp,file.portal={self._portal},"
            f"file.target={export.iqn},file.lun=1,file.user={export.username},"
            f"file.password-secret=chap,file.initiator-name={iscsi.INITIATOR}"
        )
        node = f"driver=raw,node-name=node-{self.name},discard=unmap,{file}"
        device = f"virtio-blk-pci,drive=node-{self.name},id={self.name}"
        secret = f"secret,id=chap,data={export.password}"
        return ["-object", secret, "-blockdev", node, "-device", device]


def test_full_and_increments(tgtd: Tgtd, tmp_path: Path, vault: Vault) -> None:
    target = TgtTarget(tgtd.socket, tmp_path)
    disks: list[Disk] = [
        Remote("far", tmp_path / "far", 16 * MIB, target, tgtd.portal),
        Disk("near", tmp_path / "near", 8 * MIB, "qcow2", "scsi"),
    ]
    machine = Machine(tmp_path, disks)
    try:
        draw = random.Random()
        machine.write_some(draw, 10)
        for expected in ("full", "incremental", "incremental"):
            at_cut = machine.contents()

            def write(call: str, name: str) -> None:
                if call == "put" and name.startswith("sessions/"):
                    machine.write_some(draw, 2)

            group = vault.backup(machine, write)
            assert set(ways(group).values()) == {expected}
            assert vault.restored(group) == at_cut
            machine.assert_untouched()
            machine.write_some(draw, 4)
    finally:
        machine.end()
