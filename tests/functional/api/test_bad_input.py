"""Bad input gets a 4xx that says what was wrong, and changes nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from lunr.common import errors
from tests.functional.api.test_isolation import _state
from tests.functional.api.world import World

BODIES: list[tuple[Any, str]] = [
    (b"{", "bad_request"),
    (b"[]", "bad_request"),
    (b"3", "bad_request"),
    (b'"size"', "bad_request"),
    (b"null", "bad_request"),
    (b'{"size": NaN}', "bad_request"),
    (b'{"size": Infinity}', "bad_request"),
    (b'{"size": 1, "size": 2}', "bad_request"),
    (b'{"size": ' + b"9" * 5000 + b"}", "bad_request"),
    (b'\xff\xfe{"size": 1}', "bad_request"),
    (b'{"a":' * 100_000, "bad_request"),
    ({}, "invalid_field"),
    ({"size": 0}, "invalid_field"),
    ({"size": -1}, "invalid_field"),
    ({"size": 1 << 70}, "invalid_field"),
    ({"size": 65537}, "invalid_field"),
    ({"size": 1.5}, "invalid_field"),
    ({"size": "1"}, "invalid_field"),
    ({"size": True}, "invalid_field"),
    ({"size": [1]}, "invalid_field"),
    ({"size": 1, "name": "x" * 256}, "invalid_field"),
    ({"size": 1, "name": "a\nb"}, "invalid_field"),
    ({"size": 1, "name": 7}, "invalid_field"),
    ({"size": 1, "metadata": []}, "invalid_field"),
    ({"size": 1, "metadata": {"a": 1}}, "invalid_field"),
    ({"size": 1, "metadata": {str(i): "" for i in range(129)}}, "invalid_field"),
    ({"size": 1, "affinity": "near:v1"}, "invalid_field"),
    ({"size": 1, "affinity": "different_node:"}, "invalid_field"),
    ({"size": 1, "backup": "../etc"}, "invalid_field"),
    ({"backup": "b1", "snapshot": "s1"}, "invalid_field"),
    ({"size": 1, "volume_type_name": "gold"}, "not_found"),
    ({"size": 1, "backup": "nope"}, "not_found"),
    ({"size": 1, "source_volume": "nope"}, "not_found"),
    ({"size": 1, "colour": "red"}, "unknown_field"),
    ({"size": 1, "id": "v9"}, "unknown_field"),
    ({"size": 1, "status": "ACTIVE"}, "unknown_field"),
    ({"size": 1, "account_id": "rival"}, "unknown_field"),
]


@pytest.mark.parametrize(("body", "code"), BODIES, ids=lambda value: ascii(value)[:40])
def test_a_bad_create_is_refused_and_changes_nothing(world: World, body: Any, code: str) -> None:
    before = _state(world)
    for method, path in (("POST", "/v1.0/acme/volumes"), ("PUT", "/v1.0/acme/volumes/v1")):
        answer = world.call(method, path, body)
        assert 400 <= answer.status_int < 500
        assert answer.json["code"] == code
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert _state(world) == before


BAD_IDS = [
    "a/b",
    "..",
    ".",
    "a.b",
    "a\x00b",
    "a\nb",
    "x" * 300,
    "é",
    "a b",
    "-a",
    "_",
    "%2e%2e",
    "'",
]


@pytest.mark.parametrize("id", BAD_IDS, ids=ascii)
def test_a_bad_id_in_a_path_leads_nowhere(world: World, id: str) -> None:
    before = _state(world)
    for encoded in (quote(id, safe=""), quote(quote(id, safe=""), safe="")):
        for method in ("GET", "PUT", "DELETE", "POST"):
            answer = world.call(method, f"/v1.0/acme/volumes/{encoded}", {"size": 1})
            assert answer.status_int in (400, 404, 405), answer.text
            account = world.call(method, f"/v1.0/{encoded}/volumes", {"size": 1})
            assert account.status_int in (400, 404, 405), account.text
    assert _state(world) == before


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_field"),
        ("limit=1001", "invalid_field"),
        ("limit=ten", "invalid_field"),
        ("limit=1&limit=2", "bad_request"),
        ("marker=nope", "invalid_field"),
        ("colour=red", "unknown_field"),
        ("metadata.=x", "invalid_field"),
        ("metadata.a%22b=x", "invalid_field"),
        ("name=%FF", "bad_request"),
        ("&".join(f"a{i}=1" for i in range(1001)), "bad_request"),
    ],
)
def test_a_bad_query_is_refused(world: World, query: str, code: str) -> None:
    answer = world.call("GET", f"/v1.0/acme/volumes?{query}")
    assert (answer.status_int, answer.json["code"]) == (400, code)


def test_a_large_body_is_not_read(world: World) -> None:
    answer = world.call("POST", "/v1.0/acme/volumes", b" " * 10_000_000)
    assert (answer.status_int, answer.json["code"]) == (413, "body_too_large")


def test_a_wrong_method_is_told_the_right_ones(world: World) -> None:
    answer = world.call("PATCH", "/v1.0/acme/volumes/v1")
    assert (answer.status_int, answer.headers["Allow"]) == (405, "DELETE, GET, POST, PUT")


def test_a_field_in_query_and_body_is_refused(world: World) -> None:
    answer = world.call("POST", "/v1.0/acme/volumes?size=2", {"size": 1})
    assert (answer.status_int, answer.json["code"]) == (400, "bad_request")


def test_forms_and_queries_do_as_well_as_json(world: World) -> None:
    by_query = world.call("POST", "/v1.0/acme/volumes?size=1&name=x&metadata.a=b")
    assert by_query.status_int == 202
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    by_form = world.call("POST", "/v1.0/acme/volumes", b"size=1&name=x&metadata.a=b", **form)
    assert by_form.status_int == 202
    for name in ("size", "name", "metadata"):
        assert by_query.json[name] == by_form.json[name]
    found = world.call("GET", "/v1.0/acme/volumes?metadata.a=b&limit=1").json
    assert len(found["volumes"]) == 1 and found["next"] == found["volumes"][0]["id"]
    assert world.call("GET", "/v1.0/acme/volumes?metadata.a=c").json["volumes"] == []


def test_a_defect_is_told_without_its_details(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the inner secret")

    monkeypatch.setattr(world.services.volumes, "get", broken)
    answer = world.call("GET", "/v1.0/acme/volumes/v1")
    assert (answer.status_int, answer.json["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= 40] == [
        True
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("DELETE", "/v1.0/acme/volumes/attached", None, "in_use"),
        ("DELETE", "/v1.0/acme/volumes/saving", None, "in_use"),
        ("DELETE", "/v1.0/acme/volumes/building", None, "in_use"),
        ("POST", "/v1.0/acme/volumes/attaching/extend", {"size": 2}, "in_use"),
        ("POST", "/v1.0/acme/volumes/extending/extend", {"size": 3}, "in_use"),
        ("POST", "/v1.0/acme/volumes/idle/extend", {"size": 1}, "invalid_field"),
        ("POST", "/v1.0/acme/volumes/broken/extend", {"size": 2}, "wrong_state"),
        ("POST", "/v1.0/acme/volumes/broken/backups", {}, "wrong_state"),
        ("POST", "/v1.0/acme/volumes/broken/snapshots", {}, "wrong_state"),
        ("POST", "/v1.0/acme/volumes/idle/backups", {"snapshot": "none"}, "not_found"),
        ("POST", "/v1.0/acme/volumes/idle/backups", {"snapshot": "../x"}, "invalid_field"),
        ("POST", "/v1.0/acme/volumes/idle/backups", {"snapshot": "SNAP"}, "not_found"),
        ("POST", "/v1.0/acme/volumes/two/backups", {"snapshot": "BUSY"}, "wrong_state"),
        ("PUT", "/v1.0/acme/volumes/broken/export", {"ip": "10.0.0.1"}, "wrong_state"),
        ("PUT", "/v1.0/acme/volumes/building/export", {"ip": "10.0.0.1"}, "wrong_state"),
        ("PUT", "/v1.0/acme/volumes/idle/export", {}, "invalid_field"),
        ("PUT", "/v1.0/acme/volumes/idle/export", {"ip": "10.0.0.0/8"}, "invalid_field"),
        ("PUT", "/v1.0/acme/volumes/idle/export", {"initiator": "ALL"}, "invalid_field"),
        ("PUT", "/v1.0/acme/volumes/attached/export", {"ip": "10.0.0.2"}, "in_use"),
        ("PUT", "/v1.0/acme/volumes/idle", {"size": 2}, "id_in_use"),
        ("POST", "/v1.0/acme/volumes", {"backup": "b1", "size": 1}, "invalid_field"),
        ("POST", "/v1.0/acme/volumes", {"source_volume": "broken"}, "wrong_state"),
        ("DELETE", "/v1.0/acme/backups/b1", None, "in_use"),
        ("POST", "/v1.0/acme/volumes", {"size": 65536}, "no_room"),
    ],
)
def test_what_can_not_be_done_now_is_refused_and_changes_nothing(
    world: World, method: str, path: str, body: Any, code: str
) -> None:
    create = world.services.volumes.create
    world.volume("idle")
    world.volume("two", size=2)
    world.backup("b1", "two")
    world.volume("attached")
    world.services.exports.create("acme", "attached", None, "10.0.0.1")
    snapshots = {"SNAP": world.services.snapshots.create("acme", "two")["id"]}
    world.volume("attaching")
    world.volume("extending")
    create("acme", {"size": 1}, "broken")
    world.fail(world.claim())
    world.volume("saving")
    world.services.backups.create("acme", "saving", {}, "b2")
    create("acme", {"size": 1}, "building")
    create("acme", {"backup": "b1"}, "restoring")
    world.services.exports.create("acme", "attaching", None, "10.0.0.1")
    world.services.volumes.extend("acme", "extending", 2)
    snapshots["BUSY"] = world.services.snapshots.create("acme", "two")["id"]
    while world.claim() is not None:
        pass
    if isinstance(body, dict) and body.get("snapshot") in snapshots:
        body = {"snapshot": snapshots[body["snapshot"]]}
    before = _state(world)
    answer = world.call(method, path, body)
    assert answer.json["code"] == code, answer.text
    assert answer.status_int == (507 if code == "no_room" else answer.status_int)
    assert _state(world) == before


def test_quotas_are_kept(world: World) -> None:
    world.services.accounts.update(
        "acme", {"volumes": 2, "gigabytes": 3, "snapshots": 0, "backups": 0}
    )
    world.volume("v1", size=2)
    for call, quota in (
        (lambda: world.services.volumes.create("acme", {"size": 2}), "gigabytes is 3; 2 are used"),
        (lambda: world.services.volumes.extend("acme", "v1", 4), "gigabytes"),
        (lambda: world.services.snapshots.create("acme", "v1"), "snapshots"),
        (lambda: world.services.backups.create("acme", "v1", {}), "backups"),
    ):
        with pytest.raises(errors.QuotaExceeded, match=quota):
            call()
    world.volume("v2")
    with pytest.raises(errors.QuotaExceeded, match="volumes"):
        world.services.volumes.create("acme", {"size": 1})
    world.services.accounts.update("acme", {"volumes": None})
    with pytest.raises(errors.QuotaExceeded, match="gigabytes"):
        world.services.volumes.create("acme", {"size": 1})
