from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lunr.backup.keys.derive import PUBLIC_MASTER, derive
from lunr.backup.read.restore import restore
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.live.backup import groups
from lunr.live.backup.backup import Options, backup
from lunr.live.backup.groups import Group
from lunr.live.qemu.qmp import Monitor
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd
from tests.system.live.machines import MIB, Disk, Machine, Remote
from tests.unit.backup.support import Faulty
from tools.virtual.writer.guest import Guest


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One with two disks: raw on virtio-blk, qcow2 on virtio-scsi."""
    disks = [
        Disk("alpha", tmp_path / "alpha.raw", 24 * MIB, "raw", "virtio"),
        Disk("beta", tmp_path / "beta.qcow2", 17 * MIB + 512, "qcow2", "scsi"),
    ]
    found = Machine(tmp_path, disks)
    yield found
    found.end()


class FarAndNear(NamedTuple):
    """A machine with a disk over iSCSI, from lunr's own target, and one in a file."""

    machine: Machine
    far: Remote
    near: Disk


@pytest.fixture
def far_and_near(tgtd: Tgtd, tmp_path: Path) -> Iterator[FarAndNear]:
    target = TgtTarget(tgtd.socket, tmp_path)
    far = Remote("far", tmp_path / "far", 16 * MIB, target, tgtd.portal)
    near = Disk("near", tmp_path / "near", 8 * MIB, "qcow2", "scsi")
    machine = Machine(tmp_path, [far, near])
    yield FarAndNear(machine, far, near)
    machine.end()


class Vault:
    """A repository in a folder, or in another store, and the groups in it."""

    def __init__(
        self, folder: Path, url: str = "", access: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.url = url or f"files:{folder}/store"
        self.store = open_store(self.url, "default", access)
        self.repository = Repository(self.store, derive(PUBLIC_MASTER, "default"))

    def backup(
        self,
        victim: Machine | Guest,
        before: Callable[[str, str], None] = lambda _call, _name: None,
        **options: Any,
    ) -> Group:
        """Back up `victim`; `before` is called before every call to the store."""
        repository = Repository(Faulty(self.store, before), self.repository.keys)
        with Monitor.open(victim.qmp) as monitor:
            return backup(repository, monitor, Options(**{"scratch": self.folder, **options}))

    def ids(self) -> set[str]:
        return set(self.repository.backup_ids())

    def restored(self, group: Group) -> dict[str, bytes]:
        contents = {}
        for member in groups.load(self.repository, group.group_id).members:
            path = self.folder / f"restored-{member.disk}"
            path.unlink(missing_ok=True)
            restore(self.repository, member.backup_id, path, create=True)
            contents[member.disk] = path.read_bytes()
        return contents


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    found = Vault(tmp_path)
    yield found
    found.store.close()
