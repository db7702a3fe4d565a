"""Which node gets a volume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lunr.common import errors
from tests.functional.api.world import World


def _node(world: World, **request: object) -> str:
    return str(world.services.volumes.create("acme", {"size": 1, **request})[0]["node_id"])


def test_broad_fill_takes_the_emptiest(world: World) -> None:
    world.add_node("n2")
    assert Counter(_node(world) for _ in range(10)) == {"n1": 5, "n2": 5}


def test_deep_fill_fills_one_after_the_other(tmp_path: Path) -> None:
    world = World(tmp_path, placement="deep_fill")
    world.beat("n1", gib=3)
    world.add_node("n2", gib=3)
    assert [_node(world) for _ in range(6)] == ["n1"] * 3 + ["n2"] * 3
    with pytest.raises(errors.NoRoom):
        _node(world)
    world.close()


def test_a_larger_share_of_a_smaller_node_counts(world: World) -> None:
    world.add_node("n2", gib=10)
    made = Counter(_node(world) for _ in range(22))
    assert made == {"n1": 20, "n2": 2}


def test_weight_bends_and_zero_excludes(world: World) -> None:
    world.add_node("n2", weight=0)
    assert {_node(world) for _ in range(5)} == {"n1"}
    world.services.nodes.update("n2", weight=1000)
    assert {_node(world) for _ in range(5)} == {"n2"}


def test_maintenance_excludes(world: World) -> None:
    world.services.nodes.update("n1", status="MAINTENANCE")
    with pytest.raises(errors.NoRoom, match="MAINTENANCE"):
        _node(world)
    world.beat("n1")
    assert world.services.nodes.get("n1")["status"] == "MAINTENANCE"
    world.services.nodes.update("n1", status="ACTIVE")
    assert _node(world) == "n1"


def test_types_are_where_the_nodes_have_them(world: World) -> None:
    world.services.volume_types.create("gold", min_size=2, max_size=3)
    with pytest.raises(errors.NoRoom, match="type gold"):
        _node(world, volume_type_name="gold", size=2)
    world.add_node("n2", volume_types=["gold"])
    assert _node(world, volume_type_name="gold", size=2) == "n2"
    for size in (1, 4):
        with pytest.raises(errors.InvalidField, match="2 to 3 GiB"):
            _node(world, volume_type_name="gold", size=size)
    with pytest.raises(errors.InUse):
        world.services.volume_types.delete("gold")


def test_affinity_keeps_away(world: World) -> None:
    world.services.nodes.update("n1", group="rack1")
    world.add_node("n2", group="rack1")
    world.add_node("n3", group="rack2")
    world.volume("v1", force_node="n1")
    assert {_node(world, affinity="different_node:v1") for _ in range(4)} == {"n2", "n3"}
    assert {_node(world, affinity="different_group:v1") for _ in range(4)} == {"n3"}
    world.services.nodes.update("n3", weight=0)
    with pytest.raises(errors.NoRoom, match="affinity"):
        _node(world, affinity="different_group:v1")


def test_clones_are_made_where_their_source_is_if_they_can_be(world: World) -> None:
    world.volume("v1")
    world.add_node("n2", gib=1000)
    assert {_node(world, source_volume="v1") for _ in range(3)} == {"n1"}
    assert _node(world, source_volume="v1", force_node="n2") == "n2"
    world.beat("n1", gib=1)
    assert _node(world, source_volume="v1") == "n2"
    with pytest.raises(errors.NoRoom, match="has no 1 GiB left"):
        _node(world, source_volume="v1", force_node="n1")
    world.beat("n2", gib=2)
    with pytest.raises(errors.NoRoom, match="2 has no 1 GiB left"):
        _node(world, source_volume="v1")


def test_a_full_node_takes_nothing_and_says_why(world: World) -> None:
    world.volume("v1")
    world.beat("n1", full="The thin pool is 90 % full.")
    assert world.services.nodes.get("n1")["full"] == "The thin pool is 90 % full."
    for source in ({}, {"source_volume": "v1"}):
        with pytest.raises(errors.NoRoom, match=r"no new volumes \(The thin pool is 90 % full\)"):
            _node(world, **source)
    world.services.volumes.extend("acme", "v1", 2)  # what is there goes on
    world.beat("n1")  # an older node says nothing of it
    assert world.services.nodes.get("n1")["full"] == ""
    assert _node(world) == "n1"


@pytest.mark.parametrize("limit", ["read_iops", "write_iops"])
def test_limits_are_for_nodes_that_can_keep_them(world: World, limit: str) -> None:
    world.services.volume_types.create("slow", **{limit: 100})
    world.services.nodes.update("n1", volume_types=["default", "slow"])
    world.volume("v1")
    with pytest.raises(errors.NoRoom, match="1 can't limit I/O, as the type slow asks"):
        _node(world, volume_type_name="slow")
    world.add_node("n2", volume_types=["slow"])
    world.beat("n2", limits_io=True)
    assert world.services.nodes.get("n2")["limits_io"] is True
    assert _node(world, volume_type_name="slow") == "n2"
    assert _node(world, source_volume="v1", volume_type_name="slow") == "n2"
    world.beat("n1", limits_io=True)
    assert _node(world, source_volume="v1", volume_type_name="slow") == "n1"
