"""What a lazy restore needs from the way its blocks come: through FUSE, or by dm-clone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from lunr.common.extents import Extent
from lunr.storage.restore.process import RestoreProcess
from lunr.storage.restore.status import RestoreSettings


class Backend(Protocol):
    """Makes the blocks of one volume local, and serves the volume meanwhile.

    Its process calls the three methods of :class:`lunr.storage.restore.supervisor.ProcessUser`.
    """

    @property
    def path(self) -> Path:
        """The file or device that exports open."""

    @property
    def holds_device(self) -> bool:
        """Whether no target can open the pool's device as long as :attr:`path` is open."""

    @property
    def is_in_place(self) -> bool:
        """Whether something of the backend is left between the pool's device and its users."""

    def load(self) -> None:
        """See what an earlier agent left."""

    def start(self) -> None:
        """Serve the volume from now on."""

    def apply_settings(self, settings: RestoreSettings) -> None:
        """Fill so from now on, and try damaged parts again."""

    def freeze(self) -> AbstractContextManager[list[Extent]]:
        """The absent extents, in order; they stay absent inside.

        Raises:
            RestoreBusy: they did not stay absent, or nothing says which they are.
        """

    def idle_seconds(self) -> float:
        """Seconds since the last request of an initiator; 0 where that is unknown."""

    def extend(self) -> bool:
        """Have :attr:`path` be as large as the pool's device, while it is open; False: it can't."""

    def remove_from_path(self) -> bool:
        """End what is between the pool's device and its users, if nobody has it open.

        The volume is full. Returns whether it has ended.
        """

    def stop(self) -> None:
        """Begin nothing more: :meth:`close` follows."""

    def close(self) -> None:
        """End what serves the volume, whoever has it open; all that is kept stays.

        Raises:
            RestoreBusy: it can't be ended.
        """

    def delete(self) -> None:
        """Delete what of the backend is kept outside of the restore's folders; it is closed."""

    # --- exports and the process they have open --------------------------------------------

    @property
    def generation_to_reopen(self) -> int | None:
        """Which process's file exports must open in the place of an earlier one's; None: none."""

    def mark_reopened(self, generation: int) -> None:
        """Take note that exports have the file of that process open."""

    # --- the process -----------------------------------------------------------------------

    def process_task(self) -> dict[str, Any]:
        """See :class:`ProcessUser`."""

    def before_spawn(self) -> None:
        """See :class:`ProcessUser`."""

    def prepare_use(self, process: RestoreProcess) -> None:
        """See :class:`ProcessUser`."""

    def on_usable(self, process: RestoreProcess) -> None:
        """See :class:`ProcessUser`."""
