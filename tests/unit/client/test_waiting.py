"""Waiting: how it ends, when it gives up, what it puts up with."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.client import Client, errors, waiting
from lunr.client.records import Job, Volume
from lunr.common import states
from tests.support.scripted_server import Reply, ScriptedServer, error
from tests.support.waiting import PATIENCE, SOON

PATH = "GET /v1.0/acme/volumes/v1"


def volume(status: str, **fields: object) -> Reply:
    return Reply(200, {"id": "v1", "status": status, **fields})


def test_a_volume_is_waited_for_until_it_is_active(server: ScriptedServer, client: Client) -> None:
    server.script(
        volume("NEW", job_id="j"),
        volume("BUILDING", job_id="j", progress=50),
        volume("ACTIVE", progress=100),
    )
    seen: list[tuple[str, int]] = []
    found = client.volumes.wait("v1", progress=lambda v: seen.append((v.status, v.progress)))
    assert found.status == "ACTIVE"
    assert seen == [("NEW", 0), ("BUILDING", 50), ("ACTIVE", 100)]


def test_an_extend_is_waited_for(server: ScriptedServer, client: Client) -> None:
    server.script(volume("ACTIVE", job_id="j", size=1), volume("ACTIVE", size=2))
    assert client.volumes.wait("v1").size == 2


def test_an_extend_that_failed_is_told(server: ScriptedServer, client: Client) -> None:
    server.script(volume("ACTIVE", job_id="j"), volume("ACTIVE", reason="The pool is full."))
    with pytest.raises(errors.JobFailed, match="The pool is full") as caught:
        client.volumes.wait("v1")
    assert caught.value.record.id == "v1"


def test_a_volume_in_error_says_why(server: ScriptedServer, client: Client) -> None:
    server.script(volume("BUILDING"), volume("ERROR", reason="The disk is gone."))
    with pytest.raises(errors.JobFailed, match=r"volume v1 is ERROR: The disk is gone\."):
        client.volumes.wait("v1")


@pytest.mark.parametrize("last", [Reply(404, error("not_found", "no")), volume("DELETED")])
def test_gone_is_gone(server: ScriptedServer, client: Client, last: Reply) -> None:
    server.script(volume("DELETING"), last)
    client.volumes.wait_deleted("v1")
    assert server.lines == [PATH, PATH]


def test_a_refused_detach_is_told(server: ScriptedServer, client: Client) -> None:
    export = {"volume_id": "v1", "status": "DETACHING"}
    refused = {**export, "status": "ATTACHED", "reason": "iqn.x is logged in."}
    server.script(Reply(200, export), Reply(200, refused))
    with pytest.raises(errors.JobFailed, match=r"export of volume v1 was not deleted.*logged in"):
        client.exports.wait_deleted("v1")


@pytest.mark.parametrize(("status", "words"), [("FAILED", "failed"), ("CANCELLED", "cancelled")])
def test_a_job_that_failed_has_its_code(
    server: ScriptedServer, client: Client, status: str, words: str
) -> None:
    job = {"id": "j1", "kind": "backup.verify", "status": status, "code": "corrupt", "reason": "o7"}
    server.script(Reply(200, job))
    with pytest.raises(errors.JobFailed, match=words) as caught:
        client.jobs.wait("j1")
    assert caught.value.code == "corrupt"
    assert errors.JobFailed.code == "job_failed"


def test_a_wait_ends_at_its_timeout(server: ScriptedServer, client: Client) -> None:
    server.handler = lambda _: volume("BUILDING")
    begun = time.monotonic()
    with pytest.raises(errors.WaitTimeout, match=r"After 0.3 seconds .* still BUILDING"):
        client.volumes.wait("v1", timeout=0.3)
    assert 0.3 <= time.monotonic() - begun < SOON


def test_no_time_at_all_asks_once(server: ScriptedServer, client: Client) -> None:
    server.script(volume("ACTIVE"), volume("BUILDING"))
    client.volumes.wait("v1", timeout=0)
    with pytest.raises(errors.WaitTimeout):
        client.volumes.wait("v1", timeout=0)


def test_a_wait_outlives_a_restart_of_the_api() -> None:
    answers: list[Volume | Exception] = [
        Volume(id="v1", status="BUILDING"),
        errors.Unreachable(url="http://x", cause="Connection refused"),
        errors.Unavailable(what="The API", reason="it restarts"),
        Volume(id="v1", status="ACTIVE"),
    ]

    def fetch() -> Volume:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert waiting.poll(fetch, waiting.is_settled, timeout=PATIENCE).status == "ACTIVE"


@pytest.mark.parametrize(("patience", "timeout"), [(0.2, None), (60.0, 0.2)])
def test_an_api_that_stays_away_is_given_up(
    monkeypatch: pytest.MonkeyPatch, patience: float, timeout: float | None
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", patience)

    def fetch() -> Volume:
        raise errors.Unreachable(url="http://x", cause="Connection refused")

    with pytest.raises(errors.Unreachable):
        waiting.poll(fetch, waiting.is_settled, timeout=timeout)


def test_other_errors_end_a_wait(server: ScriptedServer, client: Client) -> None:
    server.script(Reply(401, error("unauthorized", "A valid X-Auth-Token is needed.")))
    with pytest.raises(errors.Unauthorized):
        client.volumes.wait("v1")


@given(st.sampled_from(list(states.Volume)), st.none() | st.just("j"), st.none() | st.text())
def test_a_wait_can_end_in_every_state_that_nothing_follows(
    status: states.Volume, job_id: str | None, reason: str | None
) -> None:
    record = Volume(id="v1", status=status, job_id=job_id, reason=reason)
    try:
        ready = waiting.is_settled(record)
    except errors.JobFailed:
        assert (
            states.is_final(status)
            or status == "ERROR"
            or (status == "ACTIVE" and reason is not None)
        )
    else:
        # Whoever goes on waiting waits for a job, or for a state that something follows.
        ends = states.is_final(status) or status in ("ACTIVE", "ERROR")
        assert ready or job_id is not None or not ends


@given(st.sampled_from(list(states.Job)))
def test_a_job_is_waited_for_until_nothing_can_follow(status: states.Job) -> None:
    try:
        over = waiting.is_done(Job(id="j", kind="k", status=status))
    except errors.JobFailed:
        over = True
    assert over is states.is_final(status)


def test_garbage_is_swept_before_a_collection_is_over(
    server: ScriptedServer, client: Client
) -> None:
    def job(id: str, kind: str, status: str, created: int) -> dict[str, object]:
        return {
            "id": id,
            "kind": f"repository.{kind}",
            "status": status,
            "created_at": f"2026-01-01T00:00:{created:02}.000000Z",
        }

    sweeps = [
        job("new", "sweep", "QUEUED", 9),
        job("retried", "sweep", "RUNNING", 4),
        job("old", "sweep", "DONE", 3),
    ]
    server.script(
        Reply(202, job("c", "collect", "QUEUED", 5)),
        Reply(200, job("c", "collect", "DONE", 5)),
        Reply(200, {"jobs": sweeps, "next": None}),
        Reply(200, job("retried", "sweep", "DONE", 4)),
        Reply(200, job("new", "sweep", "RUNNING", 9)),
        Reply(200, job("new", "sweep", "DONE", 9)),
    )
    assert client.admin.collect("shop", wait=True).id == "new"
    assert server.requests[2].query == {"kind": "repository.sweep"}
    jobs = "GET /v1.0/shop/jobs"
    assert server.lines[3:] == [f"{jobs}/retried", f"{jobs}/new", f"{jobs}/new"]
