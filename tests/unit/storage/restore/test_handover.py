"""Handovers of lazy restores: the table of moves, and random histories of a node's exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lunr.common import errors
from lunr.storage.exports import Exports
from lunr.storage.restore.handover import MOVES, Event, Handover, IllegalMove, State, Step
from lunr.storage.restore.lazy_restore import LazyRestore
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.targets.base import Export, Session, Target

VOLUME = "v1"
FILE, DEVICE = Path("/run/v1/volume"), Path("/pool/v1")
REQUEST = {
    "volume_id": VOLUME,
    "iqn": f"iqn.2026-11.test:{VOLUME}",
    "lun": 1,
    "username": "user",
    "password": "secret-secret",
    "serial": VOLUME,
    "initiator": "iqn.2026-11.test:initiator",
}
WHO: Session = {"initiator": "iqn.2026-11.test:initiator", "ip": "127.0.0.1"}


class Broken(errors.LunrError):
    """The target fails."""


@dataclass
class Opened:
    """What a target has open: the pool's device, or the file of the process of a generation."""

    path: Path
    generation: int


@dataclass
class Node:
    """What outlives an agent: the restore's facts, and what the target has open."""

    holds_device: bool = False
    generation: int = 1
    is_alive: bool = True
    is_stale: bool = False
    is_filled: bool = False
    is_plain: bool = False
    idle: float = 0.0
    #: Generations whose process was ended, and not killed.
    ended: set[int] = field(default_factory=set)
    opened: Opened | None = None
    sessions: list[Session] = field(default_factory=list)
    fails: bool = False


class FakeRestore:
    """As :class:`LazyRestore`; the kernel ends no process whose file is open."""

    volume_id = VOLUME
    path = FILE

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def is_filled(self) -> bool:
        return self.node.is_filled

    @property
    def is_plain(self) -> bool:
        return self.node.is_plain

    @property
    def holds_device(self) -> bool:
        return self.node.holds_device and not self.node.is_plain

    @property
    def generation_to_reopen(self) -> int | None:
        node = self.node
        return node.generation if node.is_stale and node.is_alive and not node.is_plain else None

    def mark_reopened(self, generation: int) -> None:
        if generation == self.node.generation:
            self.node.is_stale = False

    def idle_seconds(self) -> float:
        return self.node.idle

    def extend(self) -> bool:
        return self.node.holds_device and self.node.is_filled and not self.node.is_plain

    def make_plain(self) -> bool:
        node = self.node
        if node.is_plain:
            return True
        is_open = node.opened is not None and node.opened == Opened(FILE, node.generation)
        if not node.is_filled or is_open:
            return False
        node.is_plain, node.is_stale = True, False
        node.ended.add(node.generation)
        return True


class FakeRegistry:
    """With one lazy restore."""

    def __init__(self, node: Node) -> None:
        self.restore = cast("LazyRestore", FakeRestore(node))

    def get(self, _volume_id: str) -> LazyRestore:
        return self.restore

    def all(self) -> list[LazyRestore]:
        return [self.restore]

    def device(self, _volume_id: str) -> Path:
        return DEVICE


class FakeTarget(Target):
    """Opens paths as tgtd does: what is open by a path stays what it was."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__()
        self.node = node
        self.name = name

    def check(self) -> None:
        """It is there."""

    def limits_io(self) -> bool:
        return False

    def exports(self) -> Mapping[str, list[Session]]:
        return {} if self.node.opened is None else {VOLUME: list(self.node.sessions)}

    def _open(self, path: Path) -> None:
        node = self.node
        if node.fails:
            raise Broken
        if path == FILE and not node.is_alive:
            raise Broken  # nothing is mounted
        if path == DEVICE and node.holds_device and not node.is_plain:
            raise Broken  # device-mapper claims it
        node.opened = Opened(path, node.generation if path == FILE else 0)

    def ensure(self, export: Export) -> None:
        if self.node.opened is None or self.node.opened.path != export.path:
            self._open(export.path)

    def resize(self, _volume_id: str) -> None:
        if self.node.opened is not None:
            self._open(self.node.opened.path)

    def reopen(self, export: Export) -> None:
        if self.node.opened is not None:
            self._open(export.path)

    def remove(self, volume_id: str, force: bool = False) -> None:
        if self.node.fails:
            raise Broken
        if self.node.sessions and not force:
            raise errors.InUse(kind="export", id=volume_id, reason="somebody is logged in")
        self.node.opened, self.node.sessions = None, []


class SyncExports(Exports):
    """Does at once what others do in threads, and waits for no pause."""

    def _beside(self, volume_id: str, work: Callable[[str], None]) -> None:
        self._pauses.clear()
        with self._lock_of(volume_id):
            self._try(volume_id, work)


class Histories(RuleBasedStateMachine):
    """A volume from its restore until it is plain, in whatever order things happen."""

    holds_device = False
    target_name = "tgt"

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(holds_device=self.holds_device)
        self.is_requested = False
        self.exports: Exports
        self.start_agent()

    def start_agent(self) -> None:
        target = FakeTarget(self.node, self.target_name)
        self.exports = SyncExports(cast("RestoreRegistry", FakeRegistry(self.node)), target)

    # --- what happens ------------------------------------------------------------------

    @rule(fails=st.booleans())
    def target_changes(self, fails: bool) -> None:
        self.node.fails = fails

    @rule()
    def attach(self) -> None:
        try:
            self.exports.attach(VOLUME, REQUEST)
        except errors.LunrError:
            return
        self.is_requested = True

    @rule(force=st.booleans())
    def detach(self, force: bool) -> None:
        try:
            self.exports.detach(VOLUME, force)
        except errors.LunrError:
            return
        self.is_requested = False

    @rule()
    def watch(self) -> None:
        self.exports.watch()

    @rule()
    def fill_ends(self) -> None:
        self.node.is_filled = self.node.is_filled or self.node.is_alive

    @precondition(lambda self: not self.node.is_plain)
    @rule()
    def process_dies(self) -> None:
        self.node.is_alive = False

    @precondition(lambda self: not self.node.is_alive)
    @rule(is_noticed=st.booleans())
    def process_is_replaced(self, is_noticed: bool) -> None:
        if self.node.is_plain:
            return
        self.node.is_alive = True
        self.node.generation += 1
        if self.holds_device:  # the loop device below it reads from the new one
            if self.node.opened is not None and self.node.opened.path == FILE:
                self.node.opened.generation = self.node.generation
            return
        self.node.is_stale = True
        if is_noticed:
            self.exports.reopen(VOLUME)

    @precondition(lambda self: self.node.opened is not None)
    @rule()
    def initiator_logs_in(self) -> None:
        self.node.sessions = [WHO]

    @rule()
    def initiators_log_out(self) -> None:
        self.node.sessions = []

    @rule(seconds=st.sampled_from([0.0, 1.9, 2.0, 60.0]))
    def initiators_are_idle(self, seconds: float) -> None:
        self.node.idle = seconds

    @rule()
    def target_is_killed(self) -> None:
        self.node.opened, self.node.sessions = None, []

    @precondition(lambda self: self.node.is_filled)
    @rule()
    def volume_grows(self) -> None:
        try:
            self.exports.resize(VOLUME)
        except errors.LunrError:
            return

    @rule()
    def agent_is_killed(self) -> None:
        self.start_agent()
        self.exports.restore(lambda: [REQUEST] if self.is_requested else [])

    # --- what is always so ---------------------------------------------------------------

    @invariant()
    def no_export_points_at_a_process_that_was_ended(self) -> None:
        opened = self.node.opened
        assert opened is None or opened.path == DEVICE or opened.generation not in self.node.ended

    @invariant()
    def it_is_known_that_an_export_has_a_dead_process_s_file_open(self) -> None:
        node = self.node
        if node.opened is not None and node.opened.path == FILE and node.is_alive:
            assert node.opened.generation == node.generation or node.is_stale

    @invariant()
    def no_export_of_a_volume_that_is_not_full_points_at_the_device(self) -> None:
        opened = self.node.opened
        assert self.node.is_filled or opened is None or opened.path == FILE

    @invariant()
    def only_a_full_volume_is_plain(self) -> None:
        assert self.node.is_filled or not self.node.is_plain

    @invariant()
    def the_state_is_true(self) -> None:
        handover = self.exports._handovers.get(VOLUME)
        if handover is not None and handover.state in (State.RELEASED, State.PLAIN):
            opened = self.node.opened
            # A killed process keeps nobody from ending its successor. What the export has open of
            # it gives only errors, until the target can be asked to open the device.
            is_dead = opened is not None and opened.generation != self.node.generation
            is_tried_again = is_dead and VOLUME in self.exports._broken
            assert opened is None or opened.path == DEVICE or is_tried_again

    def teardown(self) -> None:
        """In the end a full volume is plain, and what is requested is exported."""
        node = self.node
        node.fails, node.idle = False, 60.0
        if not node.is_alive:
            self.process_is_replaced(is_noticed=False)
        if self.target_name != "tgt" or self.holds_device:
            node.sessions = []
        for _ in range(4):
            self.exports.watch()
        assert node.is_plain == node.is_filled
        if self.is_requested:
            assert node.opened is not None
            assert node.opened.path == (DEVICE if node.is_filled else FILE)
            assert node.opened.path == DEVICE or node.opened.generation == node.generation


class HistoriesOfLio(Histories):
    """The kernel's target: an export in use is not moved."""

    target_name = "lio"


class HistoriesOfDmClone(Histories):
    """A restore that claims the pool's device."""

    holds_device = True
    target_name = "lio"


for machine in (Histories, HistoriesOfLio, HistoriesOfDmClone):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestTgt = Histories.TestCase
TestLio = HistoriesOfLio.TestCase
TestDmClone = HistoriesOfDmClone.TestCase


def test_an_export_opens_the_file_of_the_process_that_replaced_another() -> None:
    node = (histories := Histories()).node
    histories.attach()
    histories.process_dies()
    histories.process_is_replaced(is_noticed=False)
    assert node.opened == Opened(FILE, 1)
    histories.watch()
    assert node.opened == Opened(FILE, 2) and not node.is_stale


def test_the_file_of_a_dead_process_is_left_when_the_target_can_be_asked_again() -> None:
    node = (histories := Histories()).node
    histories.attach()
    node.fails = True
    histories.fill_ends()
    histories.process_dies()
    histories.process_is_replaced(is_noticed=False)
    histories.process_dies()
    histories.agent_is_killed()
    assert node.is_plain and node.opened == Opened(FILE, 1)
    node.fails = False
    histories.watch()
    assert node.opened == Opened(DEVICE, 0)


@pytest.mark.parametrize(("target", "idle"), [("tgt", 2.0), ("tgt", 1.9), ("lio", 60.0)])
def test_an_export_in_use_is_moved_when_that_is_not_noticed(target: str, idle: float) -> None:
    histories = Histories() if target == "tgt" else HistoriesOfLio()
    node = histories.node
    histories.attach()
    node.sessions, node.is_filled, node.idle = [WHO], True, idle
    histories.watch()
    assert node.is_plain is (target == "tgt" and idle == 2.0)
    node.sessions = []
    histories.watch()
    assert node.is_plain and node.opened == Opened(DEVICE, 0)


def test_a_restore_that_claims_the_device_goes_before_the_export_is_made_again() -> None:
    node = (histories := HistoriesOfDmClone()).node
    histories.attach()
    node.is_filled = True
    histories.watch()
    assert node.is_plain and node.opened == Opened(DEVICE, 0)


# --- the table -----------------------------------------------------------------------------


def handover(node: Node, state: State) -> Handover:
    made = Handover(cast("LazyRestore", FakeRestore(node)), lambda: DEVICE)
    made.state = state
    return made


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_a_move_is_in_the_table_or_illegal(state: State, event: Event) -> None:
    one = handover(Node(), state)
    expected = MOVES.get((state, event))
    if expected is None:
        with pytest.raises(IllegalMove, match=state.name):
            one.apply(event)
        assert one.state is state
    else:
        one.apply(event)
        assert one.state is expected


def test_each_state_can_be_reached_and_plain_is_the_end() -> None:
    reached = {State.SERVED}
    for _ in State:
        reached |= {after for (before, _), after in MOVES.items() if before in reached}
    assert reached == set(State)
    assert {after for (before, _), after in MOVES.items() if before is State.PLAIN} == {State.PLAIN}


def test_an_export_of_a_volume_that_is_not_full_opens_a_new_process_s_file_and_no_more() -> None:
    node = Node()
    assert handover(node, State.SERVED).next_step(True, [], True) is None
    node.is_stale = True
    assert handover(node, State.SERVED).next_step(True, [WHO], False) is Step.REOPEN
    assert handover(node, State.SERVED).next_step(False, [], True) is None
    assert handover(node, State.SERVED).next_step(True, None, True) is None


@pytest.mark.parametrize(
    ("sessions", "is_unnoticed", "expected"),
    [
        (None, False, Step.HAND_OVER),
        ([], False, Step.HAND_OVER),
        ([WHO], True, Step.HAND_OVER_WHEN_IDLE),
        ([WHO], False, None),
    ],
)
def test_when_the_export_of_a_full_volume_is_moved(
    sessions: list[Any] | None, is_unnoticed: bool, expected: Step | None
) -> None:
    node = Node(is_filled=True)
    assert handover(node, State.FULL).next_step(True, sessions, is_unnoticed) is expected
    assert handover(node, State.RELEASED).next_step(True, sessions, False) is Step.HAND_OVER
    node.is_plain = True
    assert handover(node, State.PLAIN).next_step(True, sessions, is_unnoticed) is None


@pytest.mark.parametrize(("idle", "expected"), [(1.9, False), (2.0, True)])
def test_an_export_in_use_is_moved_after_two_idle_seconds(idle: float, expected: bool) -> None:
    assert handover(Node(idle=idle), State.FULL).is_idle() is expected
