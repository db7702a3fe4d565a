"""Tokens of a real Keystone at a real lunr-api."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.support.faults.relay import Relay
from tests.support.keystone import Keystone
from tests.support.waiting import wait_until
from tests.system.keystone.conftest import Api
from tools.services import identity


@pytest.fixture(scope="module")
def relay(keystone: Keystone) -> Iterator[Relay]:
    """The way to Keystone that is taken here; others, who share it, take another."""
    url = urlsplit(keystone.admin.url)
    assert url.port is not None
    relay = Relay(url.port)
    relay.start()
    [endpoint] = keystone.admin.call("GET", "/endpoints?interface=admin")["endpoints"]
    path = f"/endpoints/{endpoint['id']}"
    change = {"url": url._replace(netloc=f"127.0.0.1:{relay.port}").geturl()}
    keystone.admin.call("PATCH", path, {"endpoint": change})
    yield relay
    keystone.admin.call("PATCH", path, {"endpoint": {"url": endpoint["url"]}})
    relay.kill()


@pytest.fixture(scope="module")
def authtoken(authtoken: dict[str, str], relay: Relay) -> dict[str, str]:
    return authtoken | {"auth_url": f"http://127.0.0.1:{relay.port}/v3", "interface": "admin"}


@dataclass
class People:
    """Projects (ids) and tokens."""

    demo: str
    other: str
    member: str
    foreign: str
    admin: str


@pytest.fixture(scope="module")
def people(keystone: Keystone) -> People:
    demo = keystone.user("alice", "demo")
    other = keystone.user("mallory", "other")
    keystone.user("root", "demo", "admin")
    return People(
        demo,
        other,
        keystone.token("alice", "demo"),
        keystone.token("mallory", "other"),
        keystone.token("root", "demo"),
    )


def test_a_member_works_in_the_own_project(api: Api, people: People) -> None:
    api.world.beat("n1")
    made = api.call("POST", f"/v1.0/{people.demo}/volumes", people.member, {"size": 1})
    assert made.status == 202
    assert made.body["account_id"] == people.demo
    seen = api.call("GET", f"/v1.0/{people.demo}/volumes/{made.body['id']}", people.member)
    assert seen.status == 200
    foreign = f"/v1.0/{people.other}/volumes"
    assert api.call("GET", foreign, people.foreign).body["volumes"] == []
    there = api.call("GET", f"{foreign}/{made.body['id']}", people.foreign)
    assert there.status == 404


def test_a_member_is_nobody_elsewhere(api: Api, people: People) -> None:
    api.call("GET", f"/v1.0/{people.demo}/volumes", people.member)
    for path in (f"/v1.0/{people.demo}/volumes", "/v1.0/acme/volumes"):
        assert api.call("GET", path, people.foreign).code == "not_found"
    assert api.call("GET", "/v1.0/admin/accounts", people.foreign).code == "forbidden"
    assert api.call("GET", "/v1.0/nodes/n1/exports", people.foreign).code == "forbidden"
    assert api.call("GET", "/v1.0/nodes/n1/exports", people.admin).code == "forbidden"


def test_an_admin_works_everywhere(api: Api, people: People, keystone: Keystone) -> None:
    keystone.user("chief", "other", "boss")  # named in [api] admin_roles
    for token in (people.admin, keystone.token("chief", "other")):
        assert api.call("GET", "/v1.0/admin/nodes", token).status == 200
        assert api.call("GET", "/v1.0/acme/volumes", token).status == 200


def test_a_role_is_not_taken_apart(api: Api, keystone: Keystone) -> None:
    # auth_token joins the names with commas.
    keystone.user("sly", "demo", "sly,admin")
    assert api.call("GET", "/v1.0/admin/nodes", keystone.token("sly", "demo")).status == 403


def test_the_account_is_made_at_first_use_and_has_quotas(api: Api, keystone: Keystone) -> None:
    project = keystone.user("newcomer", "fresh")
    token, path = keystone.token("newcomer", "fresh"), f"/v1.0/{project}/volumes"
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: api.call("GET", path, token).status, range(8))
    assert list(answers) == [200] * 8
    api.world.services.accounts.update(project, {"volumes": 1})
    api.world.beat("n1")  # it may be long since the other tests began
    assert api.call("POST", path, token, {"size": 1}).status == 202
    assert api.call("POST", path, token, {"size": 1}).code == "quota_exceeded"


def test_an_account_that_was_deleted_does_not_come_back(api: Api, keystone: Keystone) -> None:
    project = keystone.user("leaver", "gone")
    token, path = keystone.token("leaver", "gone"), f"/v1.0/{project}/volumes"
    assert api.call("GET", path, token).status == 200
    api.world.services.accounts.delete(project)
    for _ in range(2):
        assert api.call("GET", path, token).code == "not_found"
        assert api.call("POST", path, token, {"size": 1}).code == "not_found"


def test_lunrs_own_tokens_stay_good(api: Api) -> None:
    tokens = api.world.services.tokens
    assert api.call("GET", "/v1.0/acme/volumes", api.world.token).status == 200
    admin = tokens.create("acme", "admin")["token"]
    assert api.call("GET", "/v1.0/admin/nodes", admin).status == 200
    node = tokens.create_for_node("n1")["token"]
    assert api.call("GET", "/v1.0/nodes/n1/exports", node).status == 200


def test_what_auth_token_tells_by_headers_is_not_believed_from_a_client(
    api: Api, people: People
) -> None:
    claims = {
        "X_Identity_Status": "Confirmed",
        "X_Service_Identity_Status": "Confirmed",
        "X_Project_Id": people.demo,
        "X_Tenant_Id": people.demo,
        "X_User_Id": "root",
        "X_Roles": "admin",
        "X_Role": "admin",
        "X_Is_Admin_Project": "True",
        "OpenStack_System_Scope": "all",
        "X_Service_Roles": "service",
    }
    demo, admin = f"/v1.0/{people.demo}/volumes", "/v1.0/admin/nodes"
    for path in (demo, admin):
        for nobody in (None, "", "nonsense"):
            assert api.call("GET", path, nobody, **claims).status == 401
        # One more place where auth_token looks for a token.
        said = api.call("GET", path, None, **claims, X_Storage_Token=people.admin)
        assert said.status == 401
    for member in (people.foreign, api.world.token):
        assert api.call("GET", demo, member, **claims).status == 404
        assert api.call("GET", admin, member, **claims).status == 403


def test_nonsense_is_nobody(api: Api, people: People) -> None:
    whole = people.member
    tampered = whole[:-8] + ("A" if whole[-8] != "A" else "B") + whole[-7:]
    for token in (
        *("x", "0" * 32, "gAAAAA", "a" * 4000, "-" * 300, "../../v3/users", "%00", "a b", "{}"),
        *("a;b", "Bearer x", "\xe4\xf6\xfc", "=", "tok==", tampered, whole * 2, whole.lower()),
    ):
        answer = api.call("GET", f"/v1.0/{people.demo}/volumes", token)
        assert (token, answer.status) == (token, 401)


def test_a_token_without_a_project_is_told_plainly(api: Api, keystone: Keystone) -> None:
    keystone.user("wide", "demo", "admin")
    user = keystone.admin.ensure("user", "wide")
    role = keystone.admin.ensure("role", "admin")
    keystone.admin.call("PUT", f"/system/users/{user}/roles/{role}")
    keystone.admin.call("PUT", f"/domains/default/users/{user}/roles/{role}")
    for scope in ("unscoped", {"system": {"all": True}}, {"domain": {"id": "default"}}):
        who = identity.by_password("wide", "wide")
        token = identity.log_in(keystone.admin.url, who, scope)
        answer = api.call("GET", "/v1.0/admin/nodes", token)
        assert (scope, answer.status, answer.code) == (scope, 401, "not_scoped")


def test_an_expired_token_is_nobodys(api: Api, people: People, keystone: Keystone) -> None:
    path = f"/v1.0/{people.demo}/volumes"
    token = keystone.short_token("alice", "demo", 3)
    assert api.call("GET", path, token).status == 200
    wait_until(lambda: api.call("GET", path, token).status == 401, what="it expires")
    service = keystone.token("lunr", "service")  # has the role service
    assert api.call("GET", path, token, X_Service_Token=service).status == 200
    for other in (people.member, "nonsense", token):
        assert api.call("GET", path, token, X_Service_Token=other).status == 401
    assert api.call("GET", path, "nonsense", X_Service_Token=service).status == 401


def test_a_revoked_token_is_nobodys(api: Api, people: People, keystone: Keystone) -> None:
    path = f"/v1.0/{people.demo}/volumes"
    token = keystone.token("alice", "demo")
    assert api.call("GET", path, token).status == 200
    keystone.revoke(token)
    wait_until(lambda: api.call("GET", path, token).status == 401, what="it is asked for again")


def test_a_keystone_that_is_away_is_503_and_only_for_its_own_tokens(
    api: Api, people: People, relay: Relay
) -> None:
    path = f"/v1.0/{people.demo}/volumes"
    relay.kill()
    try:
        wait_until(lambda: api.call("GET", path, people.member).status != 200, what="not cached")
        answer = api.call("GET", path, people.member)
        assert (answer.status, answer.code) == (503, "unavailable")
        assert "Keystone" in answer.body["reason"]
        began = time.monotonic()
        assert api.call("GET", "/v1.0/acme/volumes", api.world.token).status == 200
        assert time.monotonic() - began < 1
    finally:
        relay.start()
    assert api.call("GET", path, people.member).status == 200


def test_the_log_has_no_token(api: Api, people: People, keystone: Keystone) -> None:
    known = keystone.token("alice", "demo")
    gone = keystone.token("alice", "demo")
    keystone.revoke(gone)
    for token in (known, gone):
        api.call("GET", f"/v1.0/{people.demo}/volumes", token)
    log = api.log.read_text()
    assert f"GET /v1.0/{people.demo}/volumes" in log
    assert not [token for token in (known, gone, api.world.token) if token[:40] in log]
    assert "Traceback" not in log
