"""Months of a simulated clock, with outages of the housekeeper and of nodes, against a model.

The model of a volume is two words: up to when its schedule was seen to, and
whether a backup of it lives. From them it says exactly what each round must do.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from lunr.api.services.schedules.recurrence import Recurrence
from lunr.api.services.schedules.runner import RETRY
from lunr.common import times
from lunr.db.models import Backup, ScheduleRun
from tests.functional.api.world import World
from tests.support.thorough import examples

#: Each volume's schedule; v3 has its type's.
SCHEDULES = {
    "v0": Recurrence.of("1h", "00:20"),
    "v1": Recurrence.of("1d", "03:30"),
    "v2": Recurrence.of("1w", "sun 22:00"),
    "v3": Recurrence.of("6h", "01:00"),
}
NODES = {"v0": "n1", "v1": "n2", "v2": "n1", "v3": "n2"}
#: Between two rounds: the housekeeper at work, or away for up to three weeks.
PAUSES = st.one_of(
    st.timedeltas(timedelta(seconds=10), timedelta(hours=2)),
    st.timedeltas(timedelta(hours=2), timedelta(days=2)),
    st.timedeltas(timedelta(days=2), timedelta(days=21)),
)


@dataclass(frozen=True)
class Step:
    """A pause, then a round, by one of two housekeepers.

    Attributes:
        away: nodes that do nothing in this step.
        busy: the volume that another job is at work on in this round.
        by_hand: the volume that somebody backs up before it.
    """

    pause: timedelta
    housekeeper: int
    away: frozenset[str]
    busy: str | None
    by_hand: str | None


STEPS = st.builds(
    Step,
    pause=PAUSES,
    housekeeper=st.integers(0, 1),
    away=st.frozensets(st.sampled_from(["n1", "n2"])),
    busy=st.none() | st.sampled_from(sorted(SCHEDULES)),
    by_hand=st.none() | st.sampled_from(sorted(SCHEDULES)),
)


@dataclass
class Model:
    """What is known of a volume without the database."""

    seen_to: datetime
    not_before: datetime
    lives: bool = False


class Simulation:
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.world.add_node("n2")
        services = self.world.services
        self.other = self.world.another()
        self.housekeepers = [services.scheduling, self.other.scheduling]
        for id, node in NODES.items():
            services.volumes.create("acme", {"size": 1, "force_node": node}, id)
        self.work(frozenset())
        for id, recurrence in SCHEDULES.items():
            request = {"every": recurrence.every, "at": recurrence.at, "spread": recurrence.spread}
            if id == "v3":
                services.schedules.create_for_type("default", request)
            else:
                services.schedules.create("acme", id, request)
        self.now = times.now()
        assert services.scheduling.plan(self.now) == 1  # the others were when they were made
        self.models = {id: Model(self.now, self.now) for id in SCHEDULES}
        self.sizes = dict.fromkeys(SCHEDULES, 1)

    def work(self, away: frozenset[str]) -> None:
        for node in {"n1", "n2"} - away:
            self.world.work(node)

    def step(self, step: Step) -> None:
        services = self.world.services
        self.now += step.pause
        self.work(step.away)
        for id, model in self.models.items():
            model.lives = model.lives and NODES[id] in step.away
        busy = step.busy
        if step.by_hand is not None and not self.is_busy(step.by_hand):
            services.backups.create("acme", step.by_hand, {})
            self.models[step.by_hand].lives = True
        if busy is not None and not self.is_busy(busy):
            self.sizes[busy] += 1
            services.volumes.extend("acme", busy, self.sizes[busy])
        expected = {id: self.expect(id) for id in SCHEDULES}
        housekeeper = self.housekeepers[step.housekeeper]
        housekeeper.plan(self.now)
        ran: list[Any] = list(iter(lambda: housekeeper.run(self.now), None))
        assert max(Counter(one.volume_id for one in ran).values(), default=0) <= 1
        made = {one.volume_id for one in ran if one.backup_id is not None}
        assert made == {id for id, what in expected.items() if what == "made"}
        assert {one.volume_id for one in ran} - made == {
            id for id, what in expected.items() if what in ("skipped", "put off")
        }
        self.check()

    def is_busy(self, id: str) -> bool:
        return self.world.services.volumes.get("acme", id)["job_id"] is not None

    def expect(self, id: str) -> str:
        """What the round must do with the volume."""
        model = self.models[id]
        next_run = SCHEDULES[id].after(model.seen_to, id)
        assert next_run is not None
        if next_run > self.now or model.not_before > self.now:
            return "nothing"
        if not model.lives and self.is_busy(id):
            model.not_before = self.now + RETRY
            return "put off"
        model.seen_to = model.not_before = self.now
        if model.lives:
            return "skipped"
        model.lives = True
        return "made"

    def check(self) -> None:
        """The promises, whatever the model says."""
        with self.world.services.context.db.read() as connection:
            for run in connection.execute(select(ScheduleRun.__table__)):
                assert run.next_run > self.now or run.not_before > self.now
                model = self.models[run.volume_id]
                assert run.next_run == SCHEDULES[run.volume_id].after(model.seen_to, run.volume_id)
            living = connection.execute(
                select(Backup.volume_id, func.count())
                .where(
                    Backup.status.in_(("NEW", "SAVING")),
                    Backup.schedule_id.is_not(None),  # people may ask for several
                )
                .group_by(Backup.volume_id)
            )
            for volume_id, count in living:
                assert (volume_id, count) == (volume_id, 1)


@settings(max_examples=examples(4, 200))
@given(st.lists(STEPS, min_size=5, max_size=25))
def test_months_with_outages(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(Path(folder))
        try:
            for step in steps:
                simulation.step(step)
        finally:
            simulation.other.close()
            simulation.world.close()
