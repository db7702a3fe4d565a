"""Collections of which the service hears only later, or never did."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete

from lunr.common import errors
from lunr.db.models import Collection, Job, JobAfter
from tests.functional.api.world import World


def _collect(world: World, **result: Any) -> None:
    world.services.collect.request("acme")
    world.done(world.claim(kinds=["repository.collect"]), **result)


def test_what_a_killed_collect_condemned_is_swept(world: World) -> None:
    world.volume()
    world.services.backups.create("acme", "v1", {})
    save = world.claim(kinds=["backup.save"])
    _collect(world, collection="c2", unswept=["c1"])
    assert world.claim(kinds=["repository.sweep"]) is None, "the save knows neither"
    world.done(save)
    world.services.backups.create("acme", "v1", {})
    again = world.claim(kinds=["backup.save"])
    assert again["payload"]["condemned"] == ["c1", "c2"]
    world.done(again)
    assert _sweep(world) == ["c1", "c2"]


def _sweep(world: World) -> list[str]:
    """Do all sweeps, one after the other; of which collections."""
    swept = []
    while (job := world.claim(kinds=["repository.sweep"])) is not None:
        world.done(job)
        swept.append(job["payload"]["collection"])
    return swept


def test_one_that_is_known_is_not_swept_twice(world: World) -> None:
    _collect(world, collection="c1")
    world.services.collect.request("acme")
    world.fail(world.claim(kinds=["repository.sweep"]))
    # Its sweep comes with the next request, not with what that finds.
    world.done(world.claim(kinds=["repository.collect"]), collection=None, unswept=["c1"])
    assert _sweep(world) == []
    world.services.collect.request("acme")
    assert _sweep(world) == ["c1"]
    world.done(world.claim(kinds=["repository.collect"]), collection=None)
    assert _sweep(world) == []


def test_lists_are_found_again_when_the_database_was_lost(world: World) -> None:
    _collect(world, collection="c1")
    for model in (JobAfter, Job, Collection):
        world.services.context.db.write(lambda session, model=model: session.execute(delete(model)))
    _collect(world, collection=None, unswept=["c1"])
    assert _sweep(world) == ["c1"]


@pytest.mark.parametrize(
    "result",
    [{"collection": "../x"}, {"unswept": ["../x"]}, {"unswept": "c1"}, {"unswept": [["c1"]]}],
    ids=str,
)
def test_what_is_no_collection_is_refused(world: World, result: dict[str, Any]) -> None:
    world.services.collect.request("acme")
    job = world.claim(kinds=["repository.collect"])
    with pytest.raises(errors.InvalidField, match="result"):
        world.done(job, **result)
    world.done(job, collection="c1")
    assert world.claim(kinds=["repository.sweep"]) is not None
