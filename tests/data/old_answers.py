"""What the API says of all that it knows of."""

from __future__ import annotations

from typing import Any

from tests.data.old_service import Api

_ALL = "limit=1000"
#: What is below a record of an account, by the name of its list.
_BELOW = {"volumes": ("snapshots", "backups", "retention", "schedule"), "backups": ("restores",)}
#: The states that some record must be in.
_STATES = {
    "volumes": "NEW BUILDING RESTORING EXTERNAL ACTIVE DELETING DELETED ERROR",
    "snapshots": "NEW SAVING AVAILABLE DELETING DELETED ERROR",
    "backups": "NEW SAVING AVAILABLE DELETING DELETED ERROR",
    "exports": "ATTACHING ATTACHED DETACHING DELETED ERROR",
    "nodes": "PENDING ACTIVE MAINTENANCE DOWN",
    "jobs": "QUEUED RUNNING DONE FAILED CANCELLED",
}
#: Jobs that no node does are never queued.
_NEVER = {("group.save", "QUEUED")}
KINDS = 17


class _Answers:
    """The answers to what was asked for, by path."""

    def __init__(self, admin: Api) -> None:
        self._admin = admin
        self.all: dict[str, Any] = {}

    def get(self, path: str) -> Any:
        """What is at `path`; nothing if there is nothing."""
        answer = self._admin.try_get(path)
        if answer is not None:
            self.all[path] = answer
        return answer or {}

    def list(self, path: str, name: str) -> list[dict[str, Any]]:
        """The records of a list, also those that are deleted."""
        shown = self.get(f"{path}?{_ALL}").get(name, [])
        deleted = self.get(f"{path}?{_ALL}&status=DELETED").get(name, [])
        return [*shown, *(one for one in deleted if one not in shown)]


def ask_for_all(admin: Api) -> dict[str, Any]:
    """What the API says of every record, by path."""
    answers = _Answers(admin)
    for name in ("volumes", "snapshots", "backups", "jobs", "schedules"):
        for record in answers.list(f"/v1.0/admin/{name}", name):
            path = f"/v1.0/{record['account_id']}/{name}/{record['id']}"
            answers.get(path)
            for part in _BELOW.get(name, ()):
                answers.get(f"{path}/{part}")
    for record in answers.list("/v1.0/admin/exports", "exports"):
        answers.get(f"/v1.0/{record['account_id']}/volumes/{record['volume_id']}/export")
    for record in answers.list("/v1.0/admin/nodes", "nodes"):
        answers.get(f"/v1.0/admin/nodes/{record['id']}")
    for record in answers.get("/v1.0/admin/volume_types")["volume_types"]:
        answers.get(f"/v1.0/admin/volume_types/{record['name']}")
    for record in answers.list("/v1.0/admin/accounts", "accounts"):
        answers.get(f"/v1.0/admin/accounts/{record['id']}")
        answers.get(f"/v1.0/admin/accounts/{record['id']}/tokens")
        for group in answers.list(f"/v1.0/{record['id']}/groups", "groups"):
            answers.get(f"/v1.0/{record['id']}/groups/{group['id']}")
    for record in answers.get(f"/v1.0/admin/schedules?{_ALL}")["schedules"]:
        answers.get(f"/v1.0/admin/schedules/{record['id']}")
    return answers.all


def check(answers: dict[str, Any]) -> None:
    """Make sure that no state of any kind of record is missing."""
    for name, states in _STATES.items():
        listed = [
            record
            for path in (f"/v1.0/admin/{name}?{_ALL}", f"/v1.0/admin/{name}?{_ALL}&status=DELETED")
            for record in answers.get(path, {}).get(name, ())
        ]
        missing = set(states.split()) - {record["status"] for record in listed}
        assert not missing, f"no {name} are {missing}"
    jobs = {(job["kind"], job["status"]) for job in answers[f"/v1.0/admin/jobs?{_ALL}"]["jobs"]}
    kinds = {kind for kind, _ in jobs}
    fates = ("QUEUED", "RUNNING", "DONE", "FAILED")
    lacking = {(kind, fate) for kind in kinds for fate in fates} - jobs - _NEVER
    assert len(kinds) == KINDS and not lacking, f"{len(kinds)} kinds, and no {lacking}"
