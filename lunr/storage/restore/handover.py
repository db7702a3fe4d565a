"""The handover of one lazy restore: its export moves from the restore's file to the pool's device.

========  ==========================================================================================
state     what is so
========  ==========================================================================================
SERVED    the restore serves the volume; what is exported has the restore's file open
STALE     as SERVED, but the export has the file of a dead process open: it must open another
FULL      the fill has ended; what is exported has the restore's file open, perhaps
RELEASED  the fill has ended, and no export has the restore's file open: its process may end
PLAIN     the process has ended: the pool's device alone serves the volume, for good
========  ==========================================================================================

A handover goes from SERVED by FULL and RELEASED to PLAIN. Where the restore claims the pool's
device for itself (dm-clone), the export is removed and made again, so RELEASED lies between.

Nothing of it is kept on disk: a handover that an agent begins with is SERVED, and learns from the
restore what has happened. In FULL it is not known then what an export has open. The kernel knows:
it unmounts no file, and removes no device, that somebody has open. So an attempt to end the process
decides, and an export never points at a process that was ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from lunr.common import errors
from lunr.storage.restore.lazy_restore import LazyRestore

_log = logging.getLogger(__name__)

#: Seconds without a request after which an export in use is moved.
IDLE_SECONDS = 2.0


class State(Enum):
    """How far a handover is; the module's docstring has the meanings."""

    SERVED = auto()
    STALE = auto()
    FULL = auto()
    RELEASED = auto()
    PLAIN = auto()


class Event(Enum):
    """What a handover learns of, or has done."""

    #: The fill has ended.
    FILLED = auto()
    #: Another process serves the restore's file.
    PROCESS_REPLACED = auto()
    #: The export has opened the restore's file.
    OPENED_FILE = auto()
    #: The export has opened the pool's device.
    OPENED_DEVICE = auto()
    #: There is no export any more.
    REMOVED = auto()
    #: The restore's process has ended, as nobody had its file open.
    ENDED = auto()


class Step(Enum):
    """What is to be done next about an export."""

    #: Have the export open the file that is served now.
    REOPEN = auto()
    #: Move the export, and end the process.
    HAND_OVER = auto()
    #: The same, once no initiator has asked for anything for a while.
    HAND_OVER_WHEN_IDLE = auto()


#: The legal moves.
MOVES: dict[tuple[State, Event], State] = {
    (State.SERVED, Event.FILLED): State.FULL,
    (State.SERVED, Event.PROCESS_REPLACED): State.STALE,
    (State.SERVED, Event.OPENED_FILE): State.SERVED,
    (State.SERVED, Event.REMOVED): State.SERVED,
    (State.STALE, Event.PROCESS_REPLACED): State.STALE,
    (State.STALE, Event.OPENED_FILE): State.SERVED,
    (State.STALE, Event.OPENED_DEVICE): State.RELEASED,
    (State.STALE, Event.REMOVED): State.SERVED,
    (State.FULL, Event.PROCESS_REPLACED): State.STALE,
    (State.FULL, Event.OPENED_FILE): State.FULL,
    (State.FULL, Event.OPENED_DEVICE): State.RELEASED,
    (State.FULL, Event.REMOVED): State.RELEASED,
    (State.FULL, Event.ENDED): State.PLAIN,
    (State.RELEASED, Event.OPENED_FILE): State.FULL,
    (State.RELEASED, Event.OPENED_DEVICE): State.RELEASED,
    (State.RELEASED, Event.REMOVED): State.RELEASED,
    (State.RELEASED, Event.ENDED): State.PLAIN,
    (State.PLAIN, Event.OPENED_DEVICE): State.PLAIN,
    (State.PLAIN, Event.REMOVED): State.PLAIN,
    (State.PLAIN, Event.ENDED): State.PLAIN,
}


class IllegalMove(errors.LunrError):
    """The handover of volume {id} is {state}, where {event} can't happen."""

    code = "handover_illegal_move"


class ExportMover(Protocol):
    """Changes what the export of one volume has open."""

    def open_device(self) -> None:
        """Have the export open the pool's device; initiators log in again.

        Raises:
            errors.LunrError: it can't now.
        """

    def remove(self) -> None:
        """Remove the export.

        Raises:
            errors.InUse: an initiator is logged in.
            errors.LunrError: it can't now.
        """

    def make(self) -> None:
        """Make the export by what :meth:`Handover.choose_path` says.

        Raises:
            errors.LunrError: it can't now.
        """


class Handover:
    """The handover of `restore`; the lock of the volume's export is held by the caller."""

    def __init__(self, restore: LazyRestore, device: Callable[[], Path]) -> None:
        """SERVED at first; `device` finds the pool's device."""
        self.restore = restore
        self.state = State.SERVED
        self._device = device

    def apply(self, event: Event) -> None:
        """Move to the state that `event` leads to.

        Raises:
            IllegalMove: none.
        """
        state = MOVES.get((self.state, event))
        if state is None:
            raise IllegalMove(id=self.restore.volume_id, state=self.state.name, event=event.name)
        self.state = state

    def refresh(self) -> State:
        """Learn from the restore what has happened; the state then."""
        generation = self.restore.generation_to_reopen
        if generation is not None and self.state is State.RELEASED:
            self.restore.mark_reopened(generation)  # no export has the file open
        elif generation is not None:
            self.apply(Event.PROCESS_REPLACED)
        if self.state is State.SERVED and self.restore.is_filled:
            self.apply(Event.FILLED)
        if self.state in (State.FULL, State.RELEASED) and self.restore.is_plain:
            self.apply(Event.ENDED)
        return self.state

    def next_step(
        self, is_requested: bool, sessions: Collection[object] | None, is_move_unnoticed: bool
    ) -> Step | None:
        """What is to be done next; None: nothing, now. It may be called without the lock.

        Args:
            is_requested: whether the volume is to be exported.
            sessions: who is logged in; None: it is not exported.
            is_move_unnoticed: whether initiators lose no command when an export is moved.
        """
        is_stale = self.restore.generation_to_reopen is not None
        if is_stale and is_requested and sessions is not None:
            return Step.REOPEN
        if self.restore.is_plain or not self.restore.is_filled:
            return None
        if not sessions or self.state is State.RELEASED:
            return Step.HAND_OVER
        return Step.HAND_OVER_WHEN_IDLE if is_move_unnoticed else None

    def choose_path(self) -> Path:
        """What an export is to open that is made, or corrected, now.

        The process of a full volume ends here, unless an export has its file open.
        """
        state = self.refresh()
        if state is State.STALE and self.restore.is_filled and not self.restore.holds_device:
            return self._device()
        if state in (State.FULL, State.RELEASED):
            self.end_process()
        return self._device() if self.state is State.PLAIN else self.restore.path

    def note_opened(self, path: Path, generation: int | None) -> None:
        """Take note that the export has opened `path`.

        Args:
            path: what :meth:`choose_path` said.
            generation: what the restore said just before of the process to be opened.
        """
        self.apply(Event.OPENED_DEVICE if path == self._device() else Event.OPENED_FILE)
        if generation is not None:
            self.restore.mark_reopened(generation)
        self.end_released_process()

    def note_removed(self) -> None:
        """Take note that the export is removed."""
        generation = self.restore.generation_to_reopen
        self.apply(Event.REMOVED)
        if generation is not None:
            self.restore.mark_reopened(generation)
        if self.refresh() is State.FULL:
            self.apply(Event.REMOVED)
        self.end_released_process()

    def hand_over(self, export: ExportMover | None) -> None:
        """Move the export to the pool's device, and end the process, as far as that can be now.

        Args:
            export: changes the volume's export; None: it has none.

        Raises:
            errors.LunrError: the export can't be moved now.
        """
        self.refresh()
        if self.state is State.PLAIN or not self.restore.is_filled:
            return
        if export is None:
            self.note_removed()
        elif self.restore.holds_device:
            export.remove()
            self.note_removed()
            export.make()
        elif self.state is not State.RELEASED:
            export.open_device()
            self.apply(Event.OPENED_DEVICE)
        self.end_released_process()

    def end_released_process(self) -> None:
        """End the process of a full volume that no export has open."""
        if self.state is State.RELEASED:
            self.end_process()

    def end_process(self) -> None:
        """End the process, if nobody has its file open."""
        try:
            if self.restore.make_plain():
                self.apply(Event.ENDED)
        except errors.LunrError as error:
            _log.warning("volume %s: %s", self.restore.volume_id, error)

    def is_idle(self) -> bool:
        """Whether an export in use can be moved now."""
        return self.restore.idle_seconds() >= IDLE_SECONDS
