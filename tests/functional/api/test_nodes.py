"""What storage nodes tell and are told besides jobs."""

from __future__ import annotations

from typing import Any

import pytest

from lunr.api.middleware.body_limit import NODE_LIMIT
from lunr.common import ids
from tests.functional.api.world import World

NODE = "/v1.0/nodes/n2"


@pytest.fixture
def token(world: World) -> str:
    """The token of the node n2."""
    return world.add_node("n2")


def test_what_a_heartbeat_tells_is_shown(world: World, token: str) -> None:
    told = {
        "capacity_bytes": 5,
        "free_bytes": 4,
        "full": "Its metadata are full.",
        "limits_io": True,
    }
    shown = world.call("PUT", NODE, told, token=token).json
    assert {name: shown[name] for name in told} == told
    metrics = world.call("GET", "/metrics", token=None).text
    assert 'lunr_node_full{node="n1"} 0.0' in metrics and 'lunr_node_full{node="n2"} 1.0' in metrics
    older = world.call("PUT", NODE, {"capacity_bytes": 5, "free_bytes": 4}, token=token).json
    assert (older["full"], older["limits_io"]) == ("", False)
    # Words of a tool that failed may be long and odd: no reason to take the node for dead.
    odd = world.call("PUT", NODE, {"full": "x\x1b" * 200}, token=token)
    assert odd.status_int == 200 and odd.json["full"] == ("x?" * 200)[:255]
    assert world.call("PUT", NODE, {"limits_io": "perhaps"}, token=token).status_int == 400
    assert world.call("PUT", NODE, {"lost_snapshots": ["../x"]}, token=token).status_int == 400


def test_a_lost_snapshot_is_in_error_and_only_that(world: World) -> None:
    world.volume("v1", force_node="n1")
    token = world.add_node("n2")
    made = [world.services.snapshots.create("acme", "v1")["id"] for _ in range(4)]
    world.work()
    lost, kept, deleting, _ = made
    world.services.snapshots.delete("acme", deleting)

    def status(id: str) -> str:
        return str(world.services.snapshots.get("acme", id)["status"])

    foreign = world.call("PUT", NODE, {"lost_snapshots": made}, token=token)
    assert foreign.status_int == 200 and status(lost) == "AVAILABLE", "it is not on that node"
    for _ in range(2):  # a node tells of it as long as it is there
        world.beat("n1", lost_snapshots=[lost, deleting, "unknown"])
        assert [status(id) for id in (lost, kept, deleting)] == ["ERROR", "AVAILABLE", "DELETING"]
    assert "overwritten" in world.services.snapshots.get("acme", lost)["reason"]
    for path, body in (("volumes/v1/backups", {"snapshot": lost}), ("volumes", {"snapshot": lost})):
        refused = world.call("POST", f"/v1.0/acme/{path}", body)
        assert (refused.status_int, refused.json["code"]) == (409, "wrong_state")
    world.services.snapshots.delete("acme", lost)
    assert world.work() == ["snapshot.delete"] * 2


def test_exports_carry_the_limits_that_the_type_has_then(world: World) -> None:
    types = world.services.volume_types
    types.create("slow", read_iops=100, write_iops=50)
    world.services.nodes.update("n1", volume_types=["default", "slow"])
    world.beat("n1", limits_io=True)
    world.volume("v1", volume_type_name="slow")
    world.volume("v2")
    for volume in ("v1", "v2"):
        world.services.exports.create("acme", volume, None, "10.0.0.1")
    types.update("slow", read_iops=200)

    def limits(found: Any) -> Any:
        return {e["volume_id"]: (e["read_iops"], e["write_iops"]) for e in found}

    jobs = [world.claim(), world.claim()]
    told = [{"volume_id": job["volume_id"], **job["payload"]} for job in jobs]
    assert limits(told) == {"v1": (200, 50), "v2": (0, 0)}
    for job in jobs:
        world.done(job)
    types.update("slow", write_iops=0)
    now = {"v1": (200, 0), "v2": (0, 0)}
    assert limits(world.services.nodes.exports("n1")["exports"]) == now
    assert limits(world.services.nodes.reconcile("n1", [], [])["exports"]) == now


def test_a_node_with_very_many_volumes_can_start(world: World, token: str) -> None:
    volumes = [ids.new() for _ in range(60_000)]
    sessions = {id: [{"initiator": "iqn.2026-11.a:b", "ip": "10.0.0.1"}] for id in volumes[:20_000]}
    answer = world.call("POST", f"{NODE}/reconcile", {"volumes": volumes}, token=token)
    assert answer.status_int == 200
    assert answer.json["unknown"]["volumes"] == volumes
    assert world.call("PUT", NODE, {"sessions": sessions}, token=token).status_int == 200
    # Others may not, whatever the path; and there is an end for nodes too.
    refused = world.call("POST", f"{NODE}/reconcile", {"volumes": volumes})
    assert (refused.status_int, refused.json["code"]) == (413, "body_too_large")
    length = {"Content-Length": str(NODE_LIMIT + 1)}
    refused = world.call("PUT", NODE, b"{}", token=token, **length)
    assert (refused.status_int, refused.json["code"]) == (413, "body_too_large")
