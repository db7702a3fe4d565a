"""What a node does, each piece of it so that it can be done again and again: see test_kill.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lunr.api.services import JOB_TYPES
from lunr.client import Client
from lunr.common import ids
from lunr.storage.pools.lvm.logical_volumes import Role, tags_for
from tests.support.initiator import sh
from tests.support.waiting import PATIENCE
from tests.vm.conftest import SMALL_DISK
from tests.vm.service.running import GROUP, OTHER_GROUP, World, configure
from tests.vm.service.second_node import NAME, second_node

MIB = 1 << 20
#: Where the base volume has data.
PLACES = (0, 1000 * MIB)
LIMITED = "limited"


def nothing() -> None:
    """Nothing to do."""


def both(*parts: Callable[[], object]) -> Callable[[], object]:
    """One after the other."""

    def run() -> None:
        for part in parts:
            part()

    return run


@dataclass(frozen=True)
class Case:
    """A piece of work of the node's, in one situation.

    Attributes:
        begin: leads to the work; `prepare` and `undo` are what goes before and after it.
        after: the case in whose middle the node is killed first, so that it comes to this work.
        options: of the node's configuration, as World.configure has them.
        expect: asserts what is true when the work is done.
        is_transient: what there is then is nothing that lasts: it is undone before it is checked
            that nothing else is there.
        pools: the kinds of pool that do such work.
    """

    begin: Callable[[], object]
    prepare: Callable[[], object] = nothing
    undo: Callable[[], object] = nothing
    after: str = ""
    options: dict[str, object] = field(default_factory=dict)
    expect: Callable[[], object] = nothing
    is_transient: bool = False
    pools: tuple[str, ...] = ("lvm", "thin")


#: Restored volumes are filled through FUSE, as where the kernel has no dm-clone.
FUSE: dict[str, object] = {"node_dm_clone": "off"}
#: Also where a snapshot makes writes slow.
REFERENCES: dict[str, object] = {"node_keep_reference": "on"}


class Life:
    """A volume, and what happens to it and to others."""

    world: World

    def __init__(self) -> None:
        """It has not begun: all that can be asked for is `cases`."""
        self.base = self.new = self.held = self.backup = self.second = self.snapshot = ""
        self._ending = contextlib.ExitStack()
        self._has_second = False

    def have_second_node(self) -> None:
        """Have one that the base volume can be copied to."""
        if not self._has_second:
            self._ending.enter_context(second_node(self.world, SMALL_DISK))
            self._has_second = True

    def begin(self, world: World) -> None:
        self.world = world
        self.base = self.client.volumes.create(size=1).id
        self.idle()

    @property
    def client(self) -> Client:
        return self.world.client

    def cases(self) -> dict[str, Case]:
        """By the name of the work, or ``WORK@SITUATION`` if it has several.

        The works are those of tests.support.faults.processes.

        Those that end with ``/2`` are second attempts.
        """
        first = {
            **self._volumes(),
            **self._fills(),
            **self._snapshots(),
            **self._backups(),
            **self._exports(),
        }
        second = {
            f"{name}/2": replace(case, after=name)
            for name, case in first.items()
            if name in JOB_TYPES.names
        }
        return {**first, **second, **self._background()}

    def _volumes(self) -> dict[str, Case]:
        clone = Case(
            lambda: self.create(source_volume=self.base),
            prepare=self.write,
            undo=self.delete,
            expect=self.is_as_base,
        )
        extend = Case(
            lambda: self.client.volumes.extend(self.new, 2),
            prepare=self.create,
            undo=self.delete,
            expect=self.is_larger,
        )
        return {
            "volume.create": Case(self.create, undo=self.delete),
            "volume.delete": Case(self.delete, prepare=self.create),
            "volume.delete@backed-up": Case(
                self.delete,
                prepare=both(self.create, self.idle, self.save_new),
                options=REFERENCES,
            ),
            "volume.extend": extend,
            "volume.extend@exported": replace(
                extend,
                prepare=both(self.create, self.idle, lambda: self.export(self.new)),
                undo=both(lambda: self.unexport(self.new), self.idle, self.delete),
            ),
            "volume.extend@snapshot": replace(
                extend,
                prepare=both(self.create, self.idle, lambda: self.take(self.new)),
                undo=both(self.drop, self.idle, self.delete),
            ),
            "volume.clone": clone,
            "volume.clone@larger": replace(
                clone, begin=lambda: self.create(source_volume=self.base, size=2)
            ),
            "volume.clone@snapshot": replace(
                clone,
                begin=lambda: self.create(snapshot=self.snapshot),
                prepare=both(self.write, self.take),
                undo=both(self.delete, self.drop),
            ),
        }

    def _fills(self) -> dict[str, Case]:
        restore = Case(
            self.restore, prepare=self.save_once, undo=self.delete, expect=self.is_as_base
        )
        hold = both(self.save_once, self.idle, self.hold)
        return {
            "volume.restore": restore,
            "volume.restore@fuse": replace(restore, options=FUSE),
            "volume.fill": restore,
            "volume.fill@fuse": replace(restore, options=FUSE),
            "filling": restore,
            "filling@fuse": replace(restore, options=FUSE),
            "filling@again": replace(
                restore, begin=both(self.restart_all, self.fill), prepare=hold
            ),
            "filling@again-fuse": replace(
                restore,
                begin=both(self.restart_all, self.fill),
                prepare=hold,
                options=FUSE,
            ),
            "cloning": restore,
            "leaving": replace(
                restore,
                begin=self.fill,
                prepare=both(hold, lambda: self.export(self.new)),
                undo=both(lambda: self.unexport(self.new), self.idle, self.delete),
            ),
            "leaving@fuse": replace(
                restore,
                begin=self.fill,
                prepare=both(hold, lambda: self.export(self.new)),
                undo=both(lambda: self.unexport(self.new), self.idle, self.delete),
                options=FUSE,
            ),
            "volume.delete@filling": Case(self.delete, prepare=hold),
            "volume.delete@filling-fuse": Case(self.delete, prepare=hold, options=FUSE),
            "volume.clone@filling": Case(
                lambda: self.create(source_volume=self.held),
                prepare=both(hold, self.idle),
                undo=both(self.delete, self.idle, self.delete_held),
                expect=self.is_as_base,
                is_transient=True,
            ),
            "snapshot.create@filling": Case(
                lambda: self.take(self.held),
                prepare=hold,
                undo=both(self.drop, self.idle, self.delete_held),
                expect=self.has_snapshot,
                is_transient=True,
            ),
            "snapshot.delete@filling": Case(
                self.drop,
                prepare=both(hold, self.idle, lambda: self.take(self.held)),
                undo=self.delete_held,
                is_transient=True,
            ),
            "backup.save@filling": Case(
                lambda: self.save_second(self.held),
                prepare=hold,
                undo=self.delete_held,
                expect=self.has_second,
                is_transient=True,
            ),
            "export.create@filling": Case(
                lambda: self.export(self.held),
                prepare=hold,
                undo=both(lambda: self.unexport(self.held), self.idle, self.delete_held),
                is_transient=True,
            ),
        }

    def _snapshots(self) -> dict[str, Case]:
        return {
            "snapshot.create": Case(
                self.take, prepare=self.write, undo=self.drop, expect=self.has_snapshot
            ),
            "snapshot.delete": Case(self.drop, prepare=self.take),
        }

    def _backups(self) -> dict[str, Case]:
        save = Case(self.save, prepare=self.write)
        garbage = both(self.save_once, self.idle, self.write, self.save_second)
        collect = Case(
            lambda: self.client.admin.collect(self.client.account),
            prepare=both(garbage, self.idle, self.delete_second),
        )
        return {
            "backup.save": save,
            "backup.save@changes": Case(
                self.save_second,
                prepare=both(self.save_once, self.idle, self.write),
                expect=self.has_second,
                options=REFERENCES,
            ),
            "backup.save@snapshot": Case(
                lambda: self.save_second(snapshot=self.snapshot),
                prepare=both(self.save_once, self.take),
                undo=self.drop,
                expect=self.has_second,
            ),
            "backup.save@copy": Case(
                lambda: self.create(source_volume=self.base, force_node=NAME),
                prepare=both(self.have_second_node, self.write),
                undo=self.delete,
                expect=self.is_copy_of_base,
                is_transient=True,
            ),
            "backup.delete": Case(
                self.delete_second, prepare=both(self.save_once, self.idle, self.save_second)
            ),
            "backup.verify": Case(
                lambda: self.client.backups.verify(self.backup), prepare=self.save_once
            ),
            "repository.collect": collect,
            "repository.sweep": collect,
            "repository.verify": Case(self.verify, prepare=self.save_once),
        }

    def _exports(self) -> dict[str, Case]:
        return {
            "export.create": Case(self.export, undo=self.unexport),
            "export.create@limited": Case(
                lambda: self.export(self.new),
                prepare=lambda: self.create(volume_type_name=self.limited()),
                undo=both(lambda: self.unexport(self.new), self.idle, self.delete),
            ),
            "export.delete": Case(self.unexport, prepare=self.export),
            "export.delete@limited": Case(
                lambda: self.unexport(self.new),
                prepare=both(
                    lambda: self.create(volume_type_name=self.limited()),
                    self.idle,
                    lambda: self.export(self.new),
                ),
                undo=self.delete,
            ),
        }

    def _background(self) -> dict[str, Case]:
        exported = both(self.write, self.export, lambda: self.take(self.base))
        gone = both(self.unexport, self.drop)
        held = both(self.save_once, self.idle, self.hold, lambda: self.export(self.held))
        not_held = both(lambda: self.unexport(self.held), self.idle, self.delete_held)
        return {
            "check": Case(self.reboot, prepare=exported, undo=gone),
            "start": Case(self.restart_with_rests, prepare=self.export, undo=self.unexport),
            "start@reboot": Case(self.reboot, prepare=exported, undo=gone),
            # Otherwise what serves goes on, and nothing is to be done.
            "start@filling-fuse": Case(
                self.restart_all, prepare=held, undo=not_held, is_transient=True, options=FUSE
            ),
            "start@filling-reboot": Case(
                self.reboot, prepare=held, undo=not_held, is_transient=True
            ),
            "stop": Case(self.tell_to_end, prepare=exported, undo=gone),
            "stop@filling": Case(self.tell_to_end, prepare=held, undo=not_held, is_transient=True),
            "removals": Case(self.come_back),
            "wiper": Case(
                self.drop, prepare=both(self.take, self.idle, self.write), pools=("lvm",)
            ),
            "growing": Case(self.write_much, prepare=self.take, undo=self.drop, pools=("lvm",)),
            "tidying": Case(
                self.tighten,
                prepare=both(self.write, self.save),
                undo=self.loosen,
                pools=("thin",),
            ),
        }

    # --- what is done ----------------------------------------------------------------

    def idle(self) -> None:
        """Wait until all is done."""
        self.world.wait_idle()

    def end(self) -> None:
        """Delete what is left, but backups, which do not matter to anybody."""
        self._ending.close()
        self.client.volumes.delete(self.base)
        self.idle()

    @property
    def _base_device(self) -> Path:
        return self._device(f"volume-{self.base}")

    def _device(self, name: str) -> Path:
        return Path(f"/dev/{GROUP}/{name}")

    def write(self) -> None:
        """Other bytes than before, at the beginning and near the end."""
        self._write(MIB)

    def write_much(self) -> None:
        """More than a small COW area holds without growing."""
        self._write(48 * MIB, (0, 48 * MIB))

    def _write(self, length: int, places: tuple[int, ...] = PLACES) -> None:
        with self._base_device.open("r+b") as file:
            for place in places:
                file.seek(place)
                file.write(os.urandom(length))
            os.fsync(file.fileno())

    def tighten(self) -> None:
        """Start the node anew with a pool that is taken for full."""
        configure(self.world.service.config, {"lvm_full_percent": 1})
        self.restart()

    def loosen(self) -> None:
        """Start it anew with one that is not."""
        self.world.configure(lvm_full_percent=85)

    def create(self, **how: Any) -> None:
        if not {"source_volume", "snapshot", "backup"} & how.keys():
            how = {"size": 1, **how}
        self.new = self.client.volumes.create(**how).id

    def delete(self) -> None:
        self.client.volumes.delete(self.new)

    def save(self) -> None:
        """All of the base volume."""
        self.backup = self.client.backups.create(self.base, full=True).id

    def save_new(self) -> None:
        self.client.backups.create(self.new)

    def save_once(self) -> None:
        if not self.backup:
            self.write()
            self.save()

    def save_second(self, volume_id: str = "", snapshot: str | None = None) -> None:
        self.second = self.client.backups.create(volume_id or self.base, snapshot=snapshot).id

    def delete_second(self) -> None:
        self.client.backups.delete(self.second)

    def verify(self) -> None:
        """Have a third of all that is stored read, which the housekeeper asks for each day."""
        self.world.service.run("verify", self.client.account)

    def restore(self) -> None:
        self.create(backup=self.backup)

    def hold(self) -> None:
        """Restore the backup, and let it lack what is in it."""
        self.create(backup=self.backup, fill="never")
        self.held = self.new
        self.client.volumes.wait_usable(self.held, timeout=PATIENCE)

    def fill(self) -> None:
        self.client.volumes.update(self.held, fill="eager")

    def delete_held(self) -> None:
        self.client.volumes.delete(self.held)

    def take(self, volume_id: str = "") -> None:
        self.snapshot = self.client.snapshots.create(volume_id or self.base).id

    def drop(self) -> None:
        self.client.snapshots.delete(self.snapshot)

    def export(self, volume_id: str = "") -> None:
        self.client.exports.create(volume_id or self.base, initiator="iqn.2026-11.x:y")

    def unexport(self, volume_id: str = "") -> None:
        self.client.exports.delete(volume_id or self.base)

    def limited(self) -> str:
        """The type of volumes whose I/O is limited."""
        admin = self.client.admin
        if LIMITED not in {one.name for one in admin.volume_types.list()}:
            admin.volume_types.create(LIMITED, read_iops=500, write_iops=500)
            for node in admin.nodes.list():
                admin.nodes.update(node.id, volume_types=["default", LIMITED])
        return LIMITED

    def tell_to_end(self) -> None:
        """Tell the node to end, which detaches all."""
        self.world.node.tell_to_end()

    def restart(self) -> None:
        """Kill the node and start it."""
        self.world.node.kill()
        self.world.node.start()
        self.world.wait_for("start")

    def restart_all(self) -> None:
        """Kill the node and what serves its filling volumes, and start it."""
        self.world.node.kill()
        self.world.end_what_serves()
        self.world.node.start()
        self.world.wait_for("start")

    def reboot(self) -> None:
        """The machine loses its power, and comes back."""
        self.world.reboot()
        self.world.wait_for("start")

    def come_back(self) -> None:
        """A volume that was deleted is there again, as when LVM's metadata are restored."""
        self.create()
        self.idle()
        self.delete()
        self.idle()
        self.world.node.kill()
        self._make_logical_volume(Role.VOLUME, self.new)
        self.world.node.start()

    def restart_with_rests(self) -> None:
        """The node was killed in a clone and in a backup, and nobody wants these any more."""
        self.world.node.kill()
        self._make_logical_volume(Role.BUILDING, ids.new())
        id_ = ids.new()
        snapshot = ("-n", f"backup-{id_}", *tags_for(Role.BACKUP, id_, self.base))
        how = ("-kn", "-pr") if self._is_thin else ("-L", "64M")
        sh("lvcreate", "-qqy", "-s", *how, *snapshot, f"{GROUP}/volume-{self.base}")
        self.world.node.start()
        self.world.wait_for("start")

    @property
    def _is_thin(self) -> bool:
        return self.world.service.settings.pool == "thin"

    def _make_logical_volume(self, role: Role, id_: str) -> None:
        name = ("-n", f"volume-{id_}", *tags_for(role, id_, id_))
        if self._is_thin:
            sh("lvcreate", "-qqy", "-kn", "-V", "1G", "-T", f"{GROUP}/pool", *name)
        else:
            sh("lvcreate", "-qqy", "-Wn", "-Zn", "-L", "1G", *name, GROUP)

    # --- what must be true -----------------------------------------------------------

    def _data(self, name: str, group: str = GROUP) -> list[bytes]:
        """What a device has where the base volume has data; not what is remembered of it."""
        file = os.open(f"/dev/{group}/{name}", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            return [os.pread(file, MIB, place) for place in PLACES]
        finally:
            os.close(file)

    def is_as_base(self) -> None:
        """The new volume has the bytes of the base volume."""
        assert self._data(f"volume-{self.new}") == self._data(f"volume-{self.base}")

    def is_copy_of_base(self) -> None:
        """The same, on the other node."""
        assert self.client.volumes.get(self.new).status == "ACTIVE"
        assert self._data(f"volume-{self.new}", OTHER_GROUP) == self._data(f"volume-{self.base}")

    def is_larger(self) -> None:
        assert self.client.volumes.get(self.new).size == 2
        size = sh("blockdev", "--getsize64", self._device(f"volume-{self.new}"))
        assert int(size) == 2048 * MIB

    def has_snapshot(self) -> None:
        assert self.client.snapshots.get(self.snapshot).status == "AVAILABLE"
        if self.client.snapshots.get(self.snapshot).volume_id == self.base:
            assert self._data(f"snap-{self.snapshot}") == self._data(f"volume-{self.base}")

    def has_second(self) -> None:
        """The second backup is there, and whole."""
        assert self.client.backups.get(self.second).status == "AVAILABLE"
