"""kill -9 of the node before any step of what it does, on LVM: nothing is left over.

The steps of each work (lives.py) are counted in a run that nobody interrupts, then it is
killed before some of them: by default before one, the first, the last, or one in the middle, on
one kind of node, of a share of all work. The seed that decides is printed, and
``LUNR_CRASH_SEED`` repeats it. ``LUNR_CRASH_STEPS=N`` tries N steps of every work,
``LUNR_CRASH_STEPS=all`` all but those that only repeat others. See docs/development.md.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from tests.support.thorough import THOROUGH
from tests.vm.service.lives import Case, Life
from tests.vm.service.running import World

#: How many steps of each work are tried: a number, "all", or nothing.
STEPS = os.environ.get("LUNR_CRASH_STEPS", "all" if THOROUGH else "")
SEED = int(os.environ.get("LUNR_CRASH_SEED", random.randrange(1 << 32)))


_NUMBERS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]*\d[0-9a-f]*\b|\d+|tmp\w+")


def worth(steps: Sequence[str]) -> list[int]:
    """The numbers of all steps but those in the middle of a long repetition.

    Steps that are the same but for numbers, between the same steps, are one: of those the first,
    the last and one in the middle.
    """
    shapes = ["", *(_NUMBERS.sub("#", step) for step in steps), ""]
    places: dict[tuple[str, ...], list[int]] = {}
    for number in range(1, len(steps) + 1):
        places.setdefault(tuple(shapes[number - 1 : number + 2]), []).append(number)
    return sorted(
        {n for same in places.values() for n in (same[0], same[len(same) // 2], same[-1])}
    )


def test_only_what_repeats_is_left_out() -> None:
    wipe = [step for done in range(100) for step in (f"say that {done}m of 99", "wait for _zero")]
    steps = ["lvs", "lvrename wipe-a1", "lvs", *wipe, "lvs", "lvremove wipe-a1"]
    assert worth(steps) == [1, 2, 3, 4, 5, 6, 103, 104, 201, 202, 203, 204, 205]


def drawn(steps: Sequence[str], rng: random.Random) -> list[int]:
    """The numbers of the steps to try."""
    points = worth(steps)
    if STEPS == "all":
        return points
    if STEPS:
        return sorted(rng.sample(points, min(len(points), int(STEPS))))
    return [rng.choice([points[0], rng.choice(points), points[-1]])]


@pytest.fixture
def life(world: World) -> Iterator[Life]:
    """A volume to do things with; nothing is left when it is gone."""
    life = Life()
    life.begin(world)
    configuration = world.service.config.read_text()
    yield life
    life.end()
    world.check()
    if world.service.config.read_text() != configuration:
        world.service.config.write_text(configuration)
        world.configure()


class Killing:
    """Does the work of a case again and again, and has the node die meanwhile."""

    def __init__(self, life: Life, name: str, tell: Callable[[str], None]) -> None:
        self.life, self.world, self.name, self._tell = life, life.world, name, tell
        self._case = life.cases()[name]
        self._work = work_of(name)
        #: What it dies of before it comes to this work.
        self._before: dict[str, int] = {}

    def count(self) -> list[str]:
        """The steps of the work."""
        if self._case.options:
            self.world.configure(**self._case.options)
        if self._case.after:
            before = self.life.cases()[self._case.after]
            work = work_of(self._case.after)
            self._run(before, work, {})
            self._before = {work: middle(self.world.node.steps(work))}
        self._run(self._case, self._work, self._before)
        return self.world.node.steps(self._work)

    def kill(self, step: int) -> None:
        """Have it die before that step, or an earlier one, if there are fewer this time."""
        is_killed = False
        while not is_killed:
            assert step, "it was not killed at its first step either"
            self._run(self._case, self._work, {**self._before, self._work: step})
            deaths = self.world.deaths
            is_killed = any(what.startswith(f"{self._work}: ") for what in deaths)
            self._tell(f"{step:>5}  {' + '.join(deaths) or 'it had fewer steps this time'}")
            step //= 2  # how often it tells its progress is up to the clock

    def _run(self, case: Case, work: str, dooms: Mapping[str, int]) -> None:
        case.prepare()
        self.life.idle()
        before = {job.id for job in self.world.client.jobs.list(limit=10)}
        self.world.do(work, case.begin, dooms)
        jobs = [job for job in self.world.client.jobs.list(limit=10) if job.id not in before]
        assert {job.status for job in jobs} <= {"DONE"}, f"{self.world.deaths}: {jobs}"
        case.expect()
        if not case.is_transient:
            self.world.check()
        case.undo()
        self.life.idle()
        if case.is_transient:
            self.world.check()


def middle(steps: Sequence[str]) -> int:
    """The number of a step about in the middle, which there is each time.

    >>> middle(["a", "b", "c"]), middle(["a", "say 1", "say 2", "say 3", "b"])
    (2, 2)
    """
    says = (number for number, step in enumerate(steps, 1) if step.startswith("say "))
    return min(len(steps) // 2 + 1, next(says, len(steps)))


def work_of(name: str) -> str:
    """The work of a case.

    >>> work_of("volume.clone@larger"), work_of("volume.clone/2")
    ('volume.clone', 'volume.clone/2')
    """
    return name.partition("@")[0]


#: Of how many runs by default one tries a case.
SHARE = 8
CASES = Life().cases()


def is_chosen(name: str, pool: str) -> bool:
    """Whether a case is tried in this run, on nodes with that kind of pool."""
    pools = CASES[name].pools
    if STEPS:
        return pool in pools
    is_due = (SEED + list(CASES).index(name)) % SHARE == 0
    return is_due and pool in pools and pool == ("lvm", "thin")[SEED // SHARE % 2]


@pytest.mark.timeout(4 * 3600 if STEPS else 600)
@pytest.mark.parametrize("name", CASES)
def test_killed_before_every_step(
    life: Life, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    killing = Killing(life, name, tell)
    steps = killing.count()
    assert steps, "nothing is changed by it"
    points = drawn(steps, random.Random(f"{SEED} {name}"))
    tell(f"\n{name}: {len(steps)} steps, {len(points)} are tried; LUNR_CRASH_SEED={SEED}")
    for step in points:
        killing.kill(step)
    tell(f"{name}: killed before {len(points)} steps; nothing was left over")
