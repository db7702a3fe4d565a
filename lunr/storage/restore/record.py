"""What a lazy restore, its process and its backend share: its places, its spec and its status."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image import mount
from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import concurrency, files
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import RestoreStatus


class RestoreRecord:
    """One lazy restore on this node.

    Attributes:
        volume_id: the volume.
        state: its folder that survives a reboot.
        run: its folder that is good for this boot.
        device: finds the volume's file or device in the pool.
        spec: what it is restored from; None: nothing is kept of it.
        status: how far it is. It changes as a whole, with `changed` held.
        changed: notified when the status or the process changes.
    """

    def __init__(self, volume_id: str, state: Path, run: Path, device: Callable[[], Path]) -> None:
        self.volume_id = volume_id
        self.state = state
        self.run = run
        self.device = device
        self.spec: RestoreSpec | None = None
        self.status = RestoreStatus()
        self.changed = threading.Condition()

    @property
    def mountpoint(self) -> Path:
        """Where the process mounts its file."""
        return self.run / "mnt"

    @property
    def mounted_file(self) -> Path:
        """The file that the process serves."""
        return self.mountpoint / "volume"

    @property
    def presence_file(self) -> Path:
        """The presence map on disk."""
        return self.state / "map"

    @property
    def root_file(self) -> Path:
        """The backup's root."""
        return self.state / "map.root"

    @property
    def gaps_file(self) -> Path:
        """What the volume lacked in the beginning."""
        return self.state / "gaps"

    @staticmethod
    def spec_file(state: Path) -> Path:
        """The file in the folder `state` that the spec is kept in."""
        return state / "task"

    def set_status(self, change: Callable[[RestoreStatus], RestoreStatus]) -> None:
        """Replace the status by what `change` makes of it, and wake those who wait for it."""
        with self.changed:
            self.status = change(self.status)
            self.changed.notify_all()

    def apply_event(self, event: str, fields: dict[str, Any]) -> None:
        """Take over an event of the process."""
        self.set_status(lambda status: status.apply_event(event, fields))

    # --- on disk ----------------------------------------------------------------------

    def load(self) -> bool:
        """Read the spec; whether there is one."""
        try:
            self.spec = spec = RestoreSpec.read(self.spec_file(self.state))
        except FileNotFoundError:
            return False
        if spec.is_filled:
            self.apply_event("filled", {})
        return True

    def create(self, spec: RestoreSpec, gaps: MissingExtents | None = None) -> None:
        """Keep the spec of a volume that is zeros, or that lacks just `gaps`."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if gaps is not None:
            concurrency.blocking(gaps.write, self.gaps_file)
        self.write_spec(spec)
        files.fsync(self.state.parent)

    def write_spec(self, spec: RestoreSpec) -> None:
        """Keep another spec."""
        spec.write(self.spec_file(self.state))
        self.spec = spec

    def need_spec(self) -> RestoreSpec:
        """The spec, which is there."""
        assert self.spec is not None
        return self.spec

    def delete_maps(self) -> None:
        """Remove all but the spec."""
        for path in (self.presence_file, self.root_file, self.gaps_file):
            path.unlink(missing_ok=True)

    def delete_run(self) -> None:
        """Remove what is good for this boot; no process is left."""
        if self.run.exists():
            mount.detach_dead(self.mountpoint)
            shutil.rmtree(self.run, ignore_errors=True)

    def delete(self) -> None:
        """Remove all."""
        self.delete_run()
        self.delete_maps()
        # The spec last: what is half removed is removed again.
        self.spec_file(self.state).unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
