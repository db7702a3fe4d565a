"""Requests: retries, errors, pages, and what must never happen to the token."""

from __future__ import annotations

import logging
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lunr.client import Client, errors
from lunr.common import ids
from lunr.common.errors import (
    BodyTooLarge,
    ConfigError,
    InvalidField,
    LunrError,
    MethodNotAllowed,
    NoSuchRoute,
)
from tests.support.scripted_server import Reply, ScriptedServer, Seen, error
from tests.support.waiting import free_port
from tests.unit.client.conftest import TOKEN

VOLUME = {"id": "v1", "status": "ACTIVE"}


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_may_be_repeated_is_repeated(
    server: ScriptedServer, client: Client, status: int
) -> None:
    busy = Reply(status, error("unavailable", "busy"))
    server.script(busy, Reply(200, VOLUME), busy, Reply(202, VOLUME), busy, Reply(202, VOLUME))
    assert client.volumes.get("v1").id == "v1"
    client.volumes.create(id="v1", size=1)
    client.volumes.delete("v1")
    path = "/v1.0/acme/volumes/v1"
    assert server.lines == [
        f"{method} {path}" for method in ("GET", "GET", "PUT", "PUT", "DELETE", "DELETE")
    ]


def test_a_lost_answer_to_a_create_makes_no_second_volume(
    server: ScriptedServer, client: Client
) -> None:
    server.script(Reply(drop=True), Reply(200, VOLUME))
    client.volumes.create(size=1)
    first, second = server.requests
    assert (first.method, first.path, first.body) == (second.method, second.path, second.body)
    assert ids.is_valid(first.path.rsplit("/", 1)[1])


@pytest.mark.parametrize("reply", [Reply(503, error("unavailable", "busy")), Reply(drop=True)])
def test_what_may_not_be_repeated_is_sent_once(
    server: ScriptedServer, client: Client, reply: Reply
) -> None:
    server.script(reply, Reply(202, VOLUME))
    with pytest.raises((errors.Unavailable, errors.Unreachable)):
        client.volumes.extend("v1", 2)
    assert len(server.requests) == 1


def test_retries_end(server: ScriptedServer, client: Client) -> None:
    server.handler = lambda _: Reply(503, error("unavailable", "The database is away."))
    with pytest.raises(errors.Unavailable) as caught:
        client.volumes.get("v1")
    assert len(server.requests) == 3  # once, and two retries
    failure = caught.value
    assert (failure.code, failure.status, failure.retry) == ("unavailable", 503, True)
    assert (failure.reason, failure.request_id) == ("The database is away.", "req-1")


def test_a_refused_connection_says_what_to_check() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with (
        Client(url, "acme", TOKEN, retries=0) as client,
        pytest.raises(errors.Unreachable) as caught,
    ):
        client.volumes.get("v1")
    message = str(caught.value)
    assert url in message
    assert "Connection refused" in message
    assert "LUNR_URL" in message


def test_a_silent_server_is_not_waited_for_forever(server: ScriptedServer) -> None:
    release = threading.Event()
    server.handler = lambda _: Reply(hang=release)
    try:
        with (
            Client(server.url, "acme", TOKEN, timeout=0.2, retries=0) as client,
            pytest.raises(errors.Unreachable, match=r"within 0.2 seconds|timed out"),
        ):
            client.volumes.get("v1")
    finally:
        release.set()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", errors.BadRequest),
        (400, "invalid_field", InvalidField),
        (400, "of_a_newer_server", errors.BadRequest),
        (401, "unauthorized", errors.Unauthorized),
        (403, "forbidden", errors.Forbidden),
        (404, "not_found", errors.NotFound),
        (404, "no_such_route", NoSuchRoute),
        (405, "method_not_allowed", MethodNotAllowed),
        (405, "of_a_newer_server", errors.BadRequest),
        (409, "conflict", errors.Conflict),
        (409, "wrong_state", errors.WrongState),
        (409, "in_use", errors.InUse),
        (409, "id_in_use", errors.IdInUse),
        (409, "of_a_newer_server", errors.Conflict),
        (413, "quota_exceeded", errors.QuotaExceeded),
        (413, "body_too_large", BodyTooLarge),
        (413, "of_a_newer_server", errors.BadRequest),
        (418, "of_a_newer_server", errors.ApiError),
        (500, "internal_error", errors.ApiError),
        (503, "unavailable", errors.Unavailable),
        (503, "store_unavailable", errors.Unavailable),
        (507, "no_room", errors.NoRoom),
        (507, "of_a_newer_server", errors.NoRoom),
    ],
)
def test_an_error_is_an_exception_of_its_own(
    server: ScriptedServer, client: Client, status: int, code: str, kind: type[errors.ApiError]
) -> None:
    server.handler = lambda _: Reply(status, error(code, "So it is."))
    with pytest.raises(errors.ApiError) as caught:
        client.volumes.update("v1", name="x")
    assert type(caught.value) is kind
    assert caught.value.reason == "So it is."
    assert caught.value.as_dict() == {
        "code": code,
        "reason": "So it is.",
        "retry": status in (503, 507),
    }
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.status, again.request_id) == (kind, status, "req-1")
    assert again.as_dict() == caught.value.as_dict()


def test_a_class_that_programs_catch_covers_the_narrower_ones() -> None:
    assert issubclass(NoSuchRoute, errors.NotFound)
    for kind in (InvalidField, BodyTooLarge, MethodNotAllowed):
        assert issubclass(kind, errors.BadRequest)
    for kind in (errors.WrongState, errors.InUse, errors.IdInUse):
        assert issubclass(kind, errors.Conflict)


def test_an_error_keeps_what_only_it_has_when_it_travels() -> None:
    failure = errors.JobFailed(kind="job", id="j1", record=None, outcome="failed", reason="o7")
    failure.code = "corrupt"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(failure))
    assert (type(again), str(again), again.code, again.record) == (
        errors.JobFailed,
        str(failure),
        "corrupt",
        None,
    )


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>Welcome</html>"),
        Reply(200, b"[]"),
        Reply(200, b""),
        Reply(404, b"<html>nginx</html>"),
        Reply(500, {"message": "of something else"}),
        Reply(200, {"name": "a record without an id"}),
    ],
)
def test_what_is_not_lunr_is_said_to_be_not_lunr(
    server: ScriptedServer, client: Client, reply: Reply
) -> None:
    server.script(reply)
    with pytest.raises(errors.BadAnswer):
        client.volumes.get("v1")


def test_a_redirect_does_not_get_the_token(server: ScriptedServer, client: Client) -> None:
    with ScriptedServer().running() as other:
        server.script(Reply(307, {}, {"Location": f"{other.url}/v1.0/acme/volumes/v1"}))
        with pytest.raises(errors.BadAnswer, match="307"):
            client.volumes.get("v1")
        assert other.requests == []


def test_cookies_are_not_kept(server: ScriptedServer, client: Client) -> None:
    server.handler = lambda _: Reply(200, VOLUME, {"Set-Cookie": "who=me"})
    client.volumes.get("v1")
    client.volumes.get("v1")
    assert "Cookie" not in server.requests[1].headers


def test_the_token_is_sent_and_told_nobody(
    server: ScriptedServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "urllib3")
    server.script(Reply(503, error("unavailable", "busy")))
    with pytest.raises(errors.NotFound) as caught:
        client.volumes.get("v1")
    assert server.requests[0].headers["X-Auth-Token"] == TOKEN
    told = [caplog.text, repr(client), repr(client.volumes), repr(caught.value), str(caught.value)]
    assert caplog.text
    assert not [text for text in told if TOKEN in text]


@pytest.mark.parametrize("token", ["", "two words", "line\nX-Role: admin", "tökén", "\x7f"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("http://127.0.0.1", "acme", token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://h/?x=1",
        "http://[",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url, "acme", TOKEN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(id=st.text().filter(lambda text: not ids.is_valid(text)) | st.just("../../admin/nodes"))
def test_a_bad_id_never_becomes_a_request(server: ScriptedServer, client: Client, id: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.volumes.get(id),
        lambda: client.exports.delete(id),
        lambda: client.backups.create("v1", id=id),
        lambda: client.admin.tokens.delete("acme", id),
        lambda: Client(server.url, id, TOKEN),
    ]
    for call in calls:
        with pytest.raises(InvalidField):
            call()
    assert server.requests == []


def test_a_list_fetches_pages_as_they_are_needed(server: ScriptedServer, client: Client) -> None:
    def page(seen: Seen) -> Reply:
        begin = int(seen.query.get("marker", "v0")[1:])
        things = [{"id": f"v{n}", "status": "ACTIVE"} for n in range(begin + 1, begin + 3)]
        return Reply(200, {"volumes": things, "next": things[-1]["id"] if begin < 4 else None})

    server.handler = page
    found = client.volumes.list(status="ACTIVE", metadata={"os": "x y"})
    assert server.requests == []
    assert [next(found).id, next(found).id] == ["v1", "v2"]
    assert len(server.requests) == 1
    assert [volume.id for volume in found] == ["v3", "v4", "v5", "v6"]
    filters = {"status": "ACTIVE", "metadata.os": "x y"}
    assert [seen.query for seen in server.requests] == [
        filters,
        {**filters, "marker": "v2"},
        {**filters, "marker": "v4"},
    ]


def test_a_limit_is_asked_for_and_kept(server: ScriptedServer, client: Client) -> None:
    things = [{"id": f"v{n}", "status": "ACTIVE"} for n in range(3)]
    server.handler = lambda seen: Reply(200, {"volumes": things, "next": seen.query["limit"]})
    assert [volume.id for volume in client.volumes.list(limit=2)] == ["v0", "v1"]
    assert len(list(client.admin.volumes(limit=3))) == 3
    assert [seen.query for seen in server.requests] == [{"limit": "2"}, {"limit": "3"}]
    with pytest.raises(errors.BadAnswer):  # a page may have at most 1000
        list(client.volumes.list(limit=5000))
    assert server.requests[-1].query == {"limit": "1000", "marker": "1000"}


@pytest.mark.parametrize("page", [{"volumes": [], "next": "v1"}, {"things": []}, {"volumes": {}}])
def test_a_list_that_makes_no_sense_ends(
    server: ScriptedServer, client: Client, page: dict[str, object]
) -> None:
    server.handler = lambda _: Reply(200, page)
    with pytest.raises(errors.BadAnswer):
        list(client.volumes.list())
    assert len(server.requests) <= 2


def test_threads_may_share_a_client(server: ScriptedServer, client: Client) -> None:
    server.handler = lambda seen: Reply(
        200, {"id": seen.path.rsplit("/", 1)[1], "status": "ACTIVE"}
    )
    wanted = [f"v{n}" for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert [v.id for v in pool.map(client.volumes.get, wanted)] == wanted


def test_the_environment_must_be_complete() -> None:
    env = {"LUNR_URL": "http://127.0.0.1:1", "LUNR_ACCOUNT": "acme", "LUNR_TOKEN": TOKEN}
    assert Client.from_env(env).account == "acme"
    for name in env:
        with pytest.raises(ConfigError, match=name):
            Client.from_env({**env, name: ""})


def test_every_error_has_a_code_and_a_sentence() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LunrError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert re.fullmatch("[a-z_]+", kind.code)
        assert kind.__doc__


def test_what_is_on_this_machine_is_asked_without_a_proxy(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    server.script(Reply(200, VOLUME))
    assert client.volumes.get("v1").id == "v1"


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    far = Client("http://lunr.example:8080", TOKEN, "acme", retries=0)
    with pytest.raises(errors.Unreachable, match=f"proxy http://127.0.0.1:{port}") as raised:
        far.volumes.get("v1")
    assert "secret" not in str(raised.value)
