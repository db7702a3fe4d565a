"""Records made from the store alone."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from lunr.api.services.backups.groups import GroupReport, MemberReport
from lunr.api.services.backups.service import BackupProtected
from lunr.api.services.pagination import Query
from lunr.backup.save.save import Backup, save
from tests.functional.manage.conftest import Manage
from tests.unit.backup.support import MemorySource, save_bytes

DATA = bytes(range(256)) * 20


@pytest.fixture
def stored(manage: Manage) -> Manage:
    """With backups of two accounts in the store, and an empty database."""
    manage("key", "make", str(manage.folder / "master.key"))
    assert manage("database", "upgrade").exit_code == 0
    with manage.repository("acme") as repository:
        save_bytes(repository, DATA, "b1")
        save_bytes(repository, DATA * 2, "b2", "b1")
    with manage.repository("other") as repository:
        save_bytes(repository, DATA, "b3")
    return manage


def backup(manage: Manage, account: str, id: str) -> Any:
    services = manage.services()
    try:
        return services.backups.get(account, id)
    finally:
        services.close()


def backups(manage: Manage, account: str, internal: bool = False) -> list[dict[str, Any]]:
    services = manage.services()
    try:
        found: list[dict[str, Any]] = services.backups.list(Query(account_id=account), internal)[
            "backups"
        ]
        return found
    finally:
        services.close()


def test_all_backups_are_found_again(stored: Manage) -> None:
    assert stored.told("rebuild", "--from-store") == {"made": 3, "there": 0, "failed": []}
    found = backup(stored, "acme", "b2")
    assert found["status"] == "AVAILABLE"
    assert (found["volume_id"], found["parent_id"], found["size"]) == ("volume", "b1", 1)
    assert found["created_at"] == "2026-11-23T00:00:00.000000Z"
    with stored.repository("acme") as repository:
        assert found["bytes_stored"] == repository.load_root("b2").statistics.bytes_stored
    assert backup(stored, "other", "b3")["status"] == "AVAILABLE"


def test_it_can_be_done_again_and_for_one_account(stored: Manage) -> None:
    only = stored.told("rebuild", "--from-store", "--account", "other")
    assert only == {"made": 1, "there": 0, "failed": []}
    assert stored.told("rebuild", "--from-store") == {"made": 2, "there": 1, "failed": []}
    assert stored.told("rebuild", "--from-store") == {"made": 0, "there": 3, "failed": []}


def test_a_group_that_its_client_told_of_is_there(stored: Manage) -> None:
    with stored.repository("acme") as repository:
        for id in ("disk", "group"):
            told = Backup(id, "volume", "2026-11-23T00:00:00Z", consistency_group="group")
            save(repository, MemorySource(DATA, False, told.geometry.chunk), told)
    services = stored.services()
    try:
        services.accounts.ensure("acme")
        member = MemberReport("disk", "disk", "volume", len(DATA))
        moment = datetime(2026, 11, 23)
        report = GroupReport("volume", moment, "AVAILABLE", [member])
        services.groups.put("acme", "group", report)
    finally:
        services.close()
    assert stored.told("rebuild", "--from-store") == {"made": 3, "there": 2, "failed": []}


def test_what_can_not_be_recorded_is_told_and_the_rest_is(stored: Manage) -> None:
    root = stored.folder / "store/acme/roots/b1"
    root.write_bytes(root.read_bytes().replace(b'"size_bytes": 5120', b'"size_bytes": 5121'))
    with stored.repository("stranger") as repository:
        save_bytes(repository, DATA, "b2")  # an id that acme has too
    result = stored("rebuild", "--from-store")
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["made"] == 2
    failed = {(one["account_id"], one["id"]): one["code"] for one in told["failed"]}
    assert failed == {("acme", "b1"): "corrupt_object", ("stranger", "b2"): "id_in_use"}


def test_what_another_key_wrote_is_told(stored: Manage) -> None:
    (stored.folder / "master.key").unlink()
    stored("key", "make", str(stored.folder / "master.key"))
    told = json.loads(stored("rebuild", "--from-store").output)
    assert told["made"] == 0
    assert {one["code"] for one in told["failed"]} == {"wrong_key"}


def test_what_was_deleted_is_not_recorded_again(stored: Manage) -> None:
    stored.told("rebuild", "--from-store")
    services = stored.services()
    services.backups.delete("acme", "b1")
    services.close()
    told = json.loads(stored("rebuild", "--from-store").output)
    assert [(one["id"], one["code"]) for one in told["failed"]] == [("b1", "wrong_state")]
    assert backup(stored, "acme", "b1")["status"] == "DELETING"


def test_a_record_is_carried_to_another_database(stored: Manage) -> None:
    stored.told("rebuild", "--from-store")
    record = stored.told("record", "export", "b2")
    assert (record["protected"], record["schedule_id"]) == (False, None)
    told = {
        "name": "the good one",
        "metadata": {"of": "Monday"},
        "protected": True,
        "schedule_id": "s1",
    }
    record |= told
    (stored.folder / "lunr.db").unlink()
    assert stored("database", "upgrade").exit_code == 0
    file = stored.folder / "record.json"
    file.write_text(json.dumps(record))
    assert stored.told("record", "import", str(file)) == {"id": "b2", "made": True}
    assert stored.told("record", "import", str(file)) == {"id": "b2", "made": False}
    found = backup(stored, "acme", "b2")
    assert (found["name"], found["metadata"]) == ("the good one", {"of": "Monday"})
    with pytest.raises(BackupProtected):
        stored.services().backups.delete("acme", "b2")
    assert stored.told("record", "export", "b2") == record


def test_what_lunr_made_for_itself_is_recorded_as_that(stored: Manage) -> None:
    with stored.repository("acme") as repository:
        assert save_bytes(repository, DATA, "moved", internal=True).internal
    assert stored.told("rebuild", "--from-store")["made"] == 4
    assert "moved" not in {one["id"] for one in backups(stored, "acme")}
    assert [one["id"] for one in backups(stored, "acme", internal=True) if one["internal"]] == [
        "moved"
    ]
    assert stored("record", "export", "moved").exit_code == 1


def test_a_group_is_recorded_with_its_backups(stored: Manage) -> None:
    with stored.repository("acme") as repository:
        save_bytes(repository, DATA, "g", volume_id="web", consistency_group="g")
        save_bytes(repository, DATA, "g-root", consistency_group="g")
        save_bytes(repository, DATA, "h-root", consistency_group="h")  # h itself was not written
    assert stored.told("rebuild", "--from-store")["made"] == 6
    assert stored.told("rebuild", "--from-store")["there"] == 6
    services = stored.services()
    group = services.groups.get("acme", "g")
    services.close()
    assert (group["machine"], group["status"], group["progress"]) == ("web", "AVAILABLE", 100)
    assert [one["id"] for one in group["backups"]] == ["g-root"]
    assert backup(stored, "acme", "h-root")["group"] is None
    assert "g" not in {one["id"] for one in backups(stored, "acme", internal=True)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "none"}, "no backup none in the store"),
        ({"id": "../b2"}, "an id is"),
        ({"account_id": "../acme"}, "an id is"),
        ({"account_id": "other"}, "no backup b2 in the store"),
        ({"name": 3}, "strings"),
        ({"metadata": {"a": {}}}, "strings"),
        ({"protected": "yes"}, "true or false"),
        ({"schedule_id": "../s"}, "an id is"),
    ],
)
def test_a_bad_record_is_refused(stored: Manage, changes: dict[str, Any], said: str) -> None:
    file = stored.folder / "record.json"
    file.write_text(json.dumps({"id": "b2", "account_id": "acme", **changes}))
    result = stored("record", "import", str(file))
    assert result.exit_code == 1
    assert said in result.output
    file.write_text("[]")
    assert "not a record" in stored("record", "import", str(file)).output
