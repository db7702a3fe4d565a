"""A tenant sees and touches only its own: every route, with every wrong token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, select

from lunr.api.routing import ADMIN, MEMBER, NODE, ROUTES, Route
from lunr.api.services.backups.groups import GroupReport, MemberReport
from lunr.common import times
from lunr.db.models import Base
from tests.functional.api.world import World

#: A body that the route would take.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1.0/{account}/volumes"): {"size": 1},
    ("PUT", "/v1.0/{account}/volumes/{id}"): {"size": 1},
    ("POST", "/v1.0/{account}/volumes/{id}"): {"name": "stolen"},
    ("POST", "/v1.0/{account}/volumes/{id}/extend"): {"size": 2},
    ("PUT", "/v1.0/{account}/volumes/{id}/export"): {"ip": "10.0.0.1"},
    ("PUT", "/v1.0/{account}/volumes/{id}/retention"): {"keep_last": 1},
    ("POST", "/v1.0/{account}/volumes/{id}/prune"): {"keep_last": 1, "all": True},
    ("POST", "/v1.0/{account}/backups/{backup_id}"): {"protected": True},
    ("PUT", "/v1.0/{account}/groups/{id}"): {
        "machine": "web",
        "created_at": "2026-11-23T12:00:00Z",
        "status": "AVAILABLE",
        "backups": [{"id": "b9", "disk": "root", "volume_id": "v9", "size_bytes": 1}],
    },
    ("POST", "/v1.0/{account}/schedules"): {"volume_id": "v1", "every": "1d"},
    ("POST", "/v1.0/{account}/schedules/{id}"): {"every": "none"},
    ("POST", "/v1.0/admin/schedules"): {"volume_type_name": "default", "every": "1d"},
    ("POST", "/v1.0/admin/schedules/{id}"): {"every": "none"},
    ("POST", "/v1.0/admin/nodes"): {"id": "n9"},
    ("POST", "/v1.0/admin/volume_types"): {"name": "t9"},
    ("POST", "/v1.0/nodes/{node}/jobs/claim"): {"kinds": ["volume.create"]},
    ("PUT", "/v1.0/nodes/{node}/jobs/{id}"): {"lease": "x", "status": "DONE"},
}


@pytest.fixture
def full(world: World) -> Iterator[World]:
    """acme has one of everything; the rival and the second node have nothing."""
    world.volume("v1")
    world.volume("v2")
    world.backup("b1")
    world.services.snapshots.create("acme", "v2")
    world.services.exports.create("acme", "v1", None, "10.0.0.1")
    world.work()
    world.services.backups.create("acme", "v2", {}, "b2")
    world.services.schedules.create("acme", "v1", {"every": "1d"})
    disk = MemberReport("g1-root", "root", "web-root", 1)
    world.services.groups.put("acme", "g1", GroupReport("web", times.now(), "SAVING", (disk,)))
    world.services.accounts.create("rival")
    return world


def _state(world: World) -> dict[str, list[Any]]:
    """Everything in the database but what a token's cache or a node's epoch changes."""
    tables: MetaData = Base.metadata
    with world.services.context.db.read() as connection:
        return {
            table.name: sorted(map(str, connection.execute(select(table))))
            for table in tables.sorted_tables
        }


def _path(world: World, route: Route, account: str, node: str = "n1") -> str:
    snapshot = world.call("GET", "/v1.0/acme/snapshots").json["snapshots"][0]["id"]
    job = world.call("GET", "/v1.0/acme/jobs").json["jobs"][0]["id"]
    schedule = world.call("GET", "/v1.0/acme/schedules").json["schedules"][0]["id"]
    id = {
        "snapshots": snapshot,
        "schedules": schedule,
        "jobs": job,
        "accounts": "acme",
        "nodes": "n1",
        "groups": "g1",
    }
    kind = re.findall(r"/(\w+)/\{id\}", route.path)
    values = {
        "account": account,
        "node": node,
        "id": id.get(kind[0] if kind else "", "v1"),
        "backup_id": "b1",
        "name": "default",
        "token_id": "t",
    }
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], route.path)


def _send(world: World, route: Route, path: str, token: str | None) -> Any:
    return world.call(route.method, path, BODIES.get((route.method, route.path)), token)


def test_no_route_answers_without_a_token(full: World) -> None:
    before = _state(full)
    for route in ROUTES:
        for token in (None, "nonsense", full.token[:-1], "é" * 10):
            answer = _send(full, route, _path(full, route, "acme"), token)
            assert (answer.status_int, answer.json["code"]) == (401, "unauthorized"), route
    assert _state(full) == before


def test_another_tenants_things_are_not_there(full: World) -> None:
    token = full.services.tokens.create("rival")["token"]
    before = _state(full)
    for route in ROUTES:
        if route.role is MEMBER:
            answer = _send(full, route, _path(full, route, "acme"), token)
            assert (answer.status_int, answer.json["code"]) == (404, "not_found"), route
            nowhere = _send(full, route, _path(full, route, "nobody"), token)
            assert nowhere.json["reason"] == answer.json["reason"].replace("acme", "nobody")
        else:
            answer = _send(full, route, _path(full, route, "acme"), token)
            assert (answer.status_int, answer.json["code"]) == (403, "forbidden"), route
    assert _state(full) == before


def test_another_tenants_ids_in_an_own_path_are_not_there(full: World) -> None:
    token = full.services.tokens.create("rival")["token"]
    before = _state(full)
    for route in ROUTES:
        if route.role is not MEMBER or "{" not in route.path.replace("{account}", ""):
            continue
        answer = _send(full, route, _path(full, route, "rival"), token)
        if route.method == "PUT" and route.path.endswith(("/volumes/{id}", "/groups/{id}")):
            # Ids are unique among all: that one is taken is all that is told.
            assert answer.json["code"] == "id_in_use"
            assert "choose another id" in answer.json["reason"]
        else:
            assert (answer.status_int, answer.json["code"]) == (404, "not_found"), route
    assert _state(full) == before


@pytest.mark.parametrize(
    "request_",
    [
        {"backup": "b1"},
        {"source_volume": "v2"},
        {"size": 1, "affinity": "different_node:v1"},
        {"size": 1, "affinity": "different_group:v1,v2"},
    ],
)
def test_another_tenants_things_can_not_be_made_use_of(full: World, request_: Any) -> None:
    token = full.services.tokens.create("rival")["token"]
    before = _state(full)
    answer = full.call("POST", "/v1.0/rival/volumes", request_, token)
    assert (answer.status_int, answer.json["code"]) == (404, "not_found")
    assert _state(full) == before


def test_another_tenants_volume_gets_no_schedule(full: World) -> None:
    token = full.services.tokens.create("rival")["token"]
    before = _state(full)
    for volume_id in ("v1", "v2"):
        body = {"volume_id": volume_id, "every": "1d"}
        answer = full.call("POST", "/v1.0/rival/schedules", body, token)
        assert (answer.status_int, answer.json["code"]) == (404, "not_found")
    assert _state(full) == before


def test_lists_hold_only_the_own(full: World) -> None:
    token = full.services.tokens.create("rival")["token"]
    for things in ("volumes", "snapshots", "backups", "schedules", "jobs"):
        assert full.call("GET", f"/v1.0/rival/{things}", token=token).json[things] == []
        assert full.call("GET", f"/v1.0/acme/{things}").json[things] != []
    marked = full.call("GET", "/v1.0/rival/volumes?marker=v1", token=token)
    unknown = full.call("GET", "/v1.0/rival/volumes?marker=v9", token=token)
    assert marked.status_int == 400
    assert marked.json["reason"] == unknown.json["reason"]


def test_a_node_reaches_its_own_paths_only(full: World) -> None:
    token = full.add_node("n2")
    before = _state(full)
    for route in ROUTES:
        answer = _send(full, route, _path(full, route, "acme", node="n1"), token)
        expected = (404, "not_found") if route.role is NODE else (403, "forbidden")
        assert (answer.status_int, answer.json["code"]) == expected, route
    assert _state(full) == before


def test_an_admin_reaches_every_account_but_plays_no_node(full: World) -> None:
    full.services.accounts.create("office")
    token = full.services.tokens.create("office", "admin")["token"]
    for route in ROUTES:
        if route.method == "GET":
            answer = _send(full, route, _path(full, route, "acme"), token)
            expected = 403 if route.role is NODE else 200
            assert answer.status_int == expected, (route, answer.text)
    assert full.call("GET", "/v1.0/nobody/volumes", token=token).status_int == 404


def test_a_revoked_token_is_worthless_at_once(full: World) -> None:
    made = full.services.tokens.create("acme")
    assert full.call("GET", "/v1.0/acme/volumes", token=made["token"]).status_int == 200
    full.services.tokens.revoke("acme", made["id"])
    assert full.call("GET", "/v1.0/acme/volumes", token=made["token"]).status_int == 401


def test_secrets_are_nowhere_in_clear(full: World, tmp_path: Path) -> None:
    password = full.services.exports.get("acme", "v1")["auth_password"]
    held = b"".join(path.read_bytes() for path in tmp_path.glob("lunr.db*"))
    for secret in (full.token, password):
        assert secret.encode() not in held
    full.services.accounts.create("office")
    token = full.services.tokens.create("office", "admin")["token"]
    listed = full.call("GET", "/v1.0/admin/exports", token=token)
    assert listed.json["exports"][0]["volume_id"] == "v1"
    assert password not in listed.text


def test_only_admins_choose_the_node(full: World) -> None:
    answer = full.call("POST", "/v1.0/acme/volumes", {"size": 1, "force_node": "n1"})
    assert (answer.status_int, answer.json["code"]) == (403, "forbidden")


def test_every_route_names_a_role() -> None:
    assert {route.role for route in ROUTES} == {MEMBER, ADMIN, NODE}
