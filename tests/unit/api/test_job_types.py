"""The job types, the handlers of the node and the page about the API agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lunr.api.jobs.job_type import JobType, JobTypes
from lunr.api.services import JOB_TYPES
from lunr.db.models import Backup, Export, Snapshot, Volume
from lunr.storage.jobs import HANDLERS

PAGE = Path(__file__).resolve().parents[3] / "docs/api.md"


def test_a_node_has_a_handler_for_each_type_that_it_may_be_given() -> None:
    given = {one.name for one in JOB_TYPES if not one.external_lease_seconds}
    assert given == HANDLERS.keys()


def test_the_page_has_a_row_for_each_type() -> None:
    table = PAGE.read_text().partition("| kind | payload")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\|(.*?)\|", table, re.MULTILINE)
    documented = [name for cell in first_cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert sorted(documented) == sorted(JOB_TYPES.names)


@pytest.mark.parametrize("job_type", list(JOB_TYPES), ids=lambda one: one.name)
def test_a_lock_key_names_what_it_locks_and_whose(job_type: JobType) -> None:
    owners = {"account_id": "a", "volume_id": "v", "subject_id": "s"}
    lock, _, owner = job_type.lock_key.format(**owners).partition("/")
    assert lock and owner in owners.values()


@pytest.mark.parametrize("model", [Volume, Snapshot, Export, Backup])
def test_each_record_has_one_type_that_deletes_it(model: type) -> None:
    found = [one for one in JOB_TYPES if one.model is model and one.done == "DELETED"]
    assert [type(one) for one in found] == [JOB_TYPES.that_deletes(model)]


def test_two_types_of_one_name_are_refused() -> None:
    class One(JobType):
        name = "one"

    class Other(One):
        pass

    with pytest.raises(ValueError, match="two job types"):
        JobTypes(One, Other)
