"""A job, its checks and how it is stopped."""

from __future__ import annotations

from typing import Any

import pytest

from lunr.common import errors
from lunr.storage.agent.job import ClaimedJob, Stop


def make(**others: Any) -> ClaimedJob:
    return ClaimedJob(
        {
            "id": "j1",
            "kind": "volume.create",
            "lease": "l1",
            "lease_seconds": 60,
            "attempt": 1,
            "volume_id": "v1",
            "payload": {},
            **others,
        }
    )


@pytest.mark.parametrize("size", [0, -1, "1", 1.5, True, None])
def test_a_size_is_a_positive_number(size: Any) -> None:
    with pytest.raises(errors.InvalidField, match="size_bytes"):
        make(payload={"size_bytes": size}).size()


@pytest.mark.parametrize("bad", ["", "..", "a/b", None, 5, "x" * 65])
def test_ids_are_checked(bad: Any) -> None:
    with pytest.raises(errors.InvalidField):
        _ = make(volume_id=bad).volume_id
    with pytest.raises(errors.InvalidField, match="backup_id"):
        make(payload={"backup_id": bad}).id_of("backup_id")


def test_progress_only_grows_and_stays_a_percentage() -> None:
    job = make()
    for done, total, expected in ((1, 0, 0), (50, 100, 50), (10, 100, 50), (300, 100, 100)):
        job.advance(done, total)
        assert job.progress == expected


def test_losing_outranks_cancelling() -> None:
    job, told = make(), []
    with job.stoppable(told.append):
        job.stop(Stop.CANCELLED)
        job.stop(Stop.CANCELLED)
        job.stop(Stop.LOST)
        job.stop(Stop.CANCELLED)
    assert told == [Stop.CANCELLED, Stop.LOST]
    assert job.stop_reason is Stop.LOST


def test_what_was_stopped_before_does_not_begin() -> None:
    job = make()
    job.stop(Stop.CANCELLED)
    with pytest.raises(errors.Cancelled), job.stoppable(lambda _: None):
        pytest.fail("it began")


def test_nothing_is_called_after_the_end() -> None:
    job, told = make(), []
    with job.stoppable(told.append):
        pass
    job.stop(Stop.LOST)
    assert told == []
