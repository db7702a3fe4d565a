"""What happens while old data is made: see make_old_data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.data.old_answers import ask_for_all, check
from tests.data.old_content import Content
from tests.data.old_machine import MIB, Machine
from tests.data.old_service import AGENT, INITIATOR, NODE, WORKER, Api, Service, soon
from tools.waiting import wait_until

GIB = 1 << 30
#: Where volumes are written to.
PLACES = (0, 300 * MIB, GIB - 8192)
#: Kinds of jobs whose subjects are volumes of one GiB that are empty, a volume each.
ON_SPARES = (
    *("volume.extend", "volume.delete", "snapshot.create", "snapshot.delete"),
    *("export.create", "export.delete", "backup.save"),
)
#: What is done to the jobs of each kind: failed, running, queued.
FATES = ("f", "r", "q")

_A = "/v1.0/default"
_HERE = {"force_node": NODE}


def play(service: Service) -> dict[str, Any]:
    """Bring the service into every state; what a manifest tells of it."""
    service.up()
    tokens = _make_records(service)
    _make_chains(service)
    _make_others(service)
    _rotate(service)
    _make_restores(service)
    _make_spares(service)
    groups = _back_up_live(service)
    _collect(service, "default")
    _copy_to(service, "copy-made", tokens["node2"])
    wait_until(lambda: _copied(service)["status"] == "AVAILABLE", what="the copy is in the store")
    _wait_for_jobs(service)
    _kill_amid_a_save(service)
    service.api_alone()
    _play_the_agents(service, tokens["node2"])
    answers = ask_for_all(service.admin)
    check(answers)
    (service.root / "answers.json").write_text(json.dumps(answers, indent=0, sort_keys=True))
    return {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=service.checkout,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip(),
        "root": str(service.root),
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "tokens": tokens,
        "groups": groups,
        "digests": {id: content.digest() for id, content in service.content.items()},
    }


# --- scene 1 -------------------------------------------------------------------------


def _make_records(service: Service) -> dict[str, str]:
    """Types, accounts, tokens and nodes; the secrets of the tokens."""
    admin = service.admin
    tokens = {}
    admin("POST", "/v1.0/admin/volume_types", {"name": "small", "max_size": 10})
    admin("POST", "/v1.0/admin/volume_types/small", {"retention": {"keep_last": 99}})
    admin("POST", "/v1.0/admin/volume_types", {"name": "fast", "read_iops": 10, "write_iops": 5})
    schedule = {"volume_type_name": "small", "every": "none", "at": "00:00", "spread": 0}
    admin("POST", "/v1.0/admin/schedules", schedule)
    admin("POST", f"/v1.0/admin/nodes/{NODE}", {"volume_types": ["default", "small"], "weight": 50})
    for id in ("second", "third", "fourth", "gone"):
        admin("POST", "/v1.0/admin/accounts", {"id": id, "quotas": {"volumes": 20}})
        token = admin("POST", f"/v1.0/admin/accounts/{id}/tokens", {"role": "member"})
        tokens[id] = token["token"]
    admin("DELETE", "/v1.0/admin/accounts/gone")
    for id in ("node2", "pending", "down"):
        tokens[id] = admin("POST", "/v1.0/admin/nodes", {"id": id, "group": "rack2"})["token"]
    admin("POST", "/v1.0/admin/nodes", {"id": "resting", "status": "MAINTENANCE"})
    _beat(service.agent("down", tokens["down"]))
    return tokens


def _beat(agent: Api) -> None:
    room = {"capacity_bytes": 100 * GIB, "free_bytes": 100 * GIB}
    told = {"hostname": "other", "portal": "127.0.0.1:1", "pool": "files", "target": "tgt"}
    agent("PUT", "", {**told, **room, "version": "0", "sessions": {}})


def _make_chains(service: Service) -> None:
    """A volume with backups that build upon each other, by the first master key."""
    service.volume("main")
    service.write("main", *PLACES)
    service.backup("main-full", "main")
    service.write("main", 8192, 300 * MIB)
    service.backup("main-patched", "main", protected=True, metadata={"why": "kept"})
    service.backup("main-gone", "main")
    service.delete(f"{_A}/backups/main-gone")
    admin = service.admin
    admin("PUT", f"{_A}/volumes/main/retention", {"keep_last": 90, "keep_daily": 7})
    # The next run is some days from now, whenever that is.
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(time.gmtime().tm_wday + 3) % 7]
    when = {"volume_id": "main", "every": "1w", "at": f"{day} 12:00", "spread": 0}
    admin("POST", f"{_A}/schedules", when)


def _make_others(service: Service) -> None:
    """Other accounts: a chain, what is not encrypted, what is damaged, garbage."""
    for account in ("second", "third", "fourth"):
        id = f"{account}-volume"
        service.volume(id, account, size=1, volume_type_name="small", metadata={"of": account})
        service.write(id, 0, account=account)
        service.backup(f"{account}-full", id, account)
        service.write(id, 5 * MIB, account=account)
        service.backup(f"{account}-next", id, account)
    for account in ("second", "third", "fourth"):
        service.write(f"{account}-volume", 40 * MIB, account=account)
        service.backup(f"{account}-gone", f"{account}-volume", account)
        service.delete(f"/v1.0/{account}/backups/{account}-gone")
        if account != "fourth":
            _announce(service, account)
        _collect(service, account)
    wait_until(lambda: _is_done(service, "repository.sweep"), what="a collection is swept")
    _announce(service, "fourth")
    service.execute("UPDATE jobs SET lease_until = created_at WHERE subject_id = 'fourth-group'")
    service.wait("/v1.0/fourth/groups/fourth-group", "ERROR")
    service.configure("store", "encryption", "none")
    service.volume("plain", "second")
    service.write("plain", 0, 9 * MIB, account="second")
    service.backup("plain-full", "plain", "second")
    service.write("plain", 9 * MIB, account="second")
    service.backup("plain-next", "plain", "second")
    service.volume("damaged", "fourth")
    service.write("damaged", 0, account="fourth")
    before = set(service.root.glob("store/fourth/chunks/**/*"))
    service.backup("damaged-full", "damaged", "fourth")
    (lost,) = (p for p in {*service.root.glob("store/fourth/chunks/**/*")} - before if p.is_file())
    with lost.open("r+b") as file:
        file.seek(100)
        file.write(bytes(200))
    job = service.admin("POST", "/v1.0/fourth/backups/damaged-full/verify")
    _wait_for_job(service, "fourth", job["id"], "FAILED")


def _announce(service: Service, account: str) -> None:
    """Say that a group is being saved: what is condemned from now on is not swept before."""
    member = {"disk": "disk", "volume_id": f"{account}-disk", "size_bytes": MIB}
    told = {
        "machine": "elsewhere",
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": "SAVING",
        "backups": [{"id": f"{account}-announced", **member}],
    }
    service.admin("PUT", f"/v1.0/{account}/groups/{account}-group", told)


def _is_done(service: Service, kind: str) -> bool:
    jobs = service.admin("GET", f"/v1.0/admin/jobs?limit=1000&kind={kind}")["jobs"]
    return any(job["status"] == "DONE" for job in jobs)


def _collect(service: Service, account: str) -> None:
    job = service.admin("POST", f"/v1.0/admin/accounts/{account}/collect")
    _wait_for_job(service, account, job["id"])


def _rotate(service: Service) -> None:
    """A new master key: what is saved now is by that."""
    service.stop()
    service.manage("key", "rotate")
    service.up()
    service.write("main", 16384)
    service.backup("main-again", "main")
    service.write("main", GIB - 8192)
    service.backup("main-next", "main")
    service.snapshot("main")
    service.volume("clone-of-main", source_volume="main")
    service.content["clone-of-main"] = service.content["main"].copy()
    service.write("clone-of-main", 600 * MIB)
    # After the baseline: what the next backup is to find.
    service.write("main", 300 * MIB)
    service.volume("gone")
    service.export("gone")
    service.unexport("gone")
    snapshot = service.snapshot("gone")
    service.delete(f"{_A}/snapshots/{snapshot}")
    service.delete(f"{_A}/volumes/gone")
    for id in ("gone", snapshot):
        del service.content[id]


def _make_restores(service: Service) -> None:
    """Volumes that are half filled, a snapshot and a clone of one."""
    admin = service.admin
    for id, size in (("half", 2), ("lazy", 1), ("stuck", 1)):
        request = {"backup": "main-next", "fill": "never", "size": size, **_HERE}
        admin("PUT", f"{_A}/volumes/{id}", request)
        service.wait(f"{_A}/volumes/{id}", "RESTORING")
        service.wait_usable(id)
        service.content[id] = service.content["main-next"].copy()
        service.write(id, 300 * MIB + 4096, 700 * MIB, reads=(0,))
    service.volume("filled", backup="main-full")
    service.content["filled"] = service.content["main-full"].copy()
    service.admin("POST", f"{_A}/volumes/filled/extend", {"size": 3})
    wait_until(lambda: admin("GET", f"{_A}/volumes/filled")["size"] == 3)
    job = admin("POST", f"{_A}/backups/main-full/verify")
    _wait_for_job(service, "default", job["id"])
    snapshot = service.snapshot("half")
    for pid in (agents := list(service.pids(AGENT))):
        os.kill(pid, signal.SIGSTOP)
    admin("PUT", f"{_A}/volumes/clone-of-half", {"snapshot": snapshot, **_HERE})
    admin("POST", f"{_A}/volumes/clone-of-half", {"fill": "never"})
    for pid in agents:
        os.kill(pid, signal.SIGCONT)
    service.wait_usable("clone-of-half")
    service.content["clone-of-half"] = service.content[snapshot].copy()
    service.write("half", 0, GIB + MIB)
    for id in ("half", "lazy", "stuck", "clone-of-half"):
        assert (service.root / "state" / "fillings" / id / "map").exists(), id


def _make_spares(service: Service) -> None:
    """Volumes for the jobs of the last scene."""
    for kind in ON_SPARES:
        for fate in FATES:
            id = _spare(kind, fate)
            service.volume(id)
            if kind == "snapshot.delete":
                service.snapshot(id)
            elif kind == "export.delete":
                service.export(id)
    service.volume("used", volume_type_name="small", size=1)
    service.write("used", 0)
    service.backup("used-gone", "used")
    service.write("used", 0)
    service.delete(f"{_A}/backups/used-gone")
    service.export("used")
    for kind in ("backup.delete", "backup.verify"):
        for fate in FATES:
            service.backup(_spare(kind, fate), "used")


def _spare(kind: str, fate: str) -> str:
    return f"{kind.replace('.', '-')}-{fate}"


def _back_up_live(service: Service) -> dict[str, str]:
    """Groups: complete, deleted, and one whose client was killed; their ids."""
    machine = Machine(service.root.with_name("vm"))
    try:
        done = [_live(service, machine) for _ in range(3)]
        service.delete(f"{_A}/groups/{done[2]}")
        return {
            "full": done[0],
            "next": done[1],
            "deleted": done[2],
            "saving": _live_killed(service, machine),
        }
    finally:
        machine.end()


def _live_command(service: Service, machine: Machine) -> tuple[list[str], dict[str, str]]:
    env = {
        **service.openrc,
        "LUNR_STORE": f"files:{service.root}/store",
        "LUNR_KEY_FILE": str(service.root / "keys" / "master.key"),
    }
    argv = ["lunr", "live", "backup", "--qmp", str(machine.monitor), "--json"]
    return [*argv, "--scratch", str(machine.folder), "--scratch-reserve", "0"], env


def _live(service: Service, machine: Machine) -> str:
    argv, env = _live_command(service, machine)
    group: dict[str, Any] = json.loads(service.run(*argv, **env))
    for member in group["members"]:
        service.content[member["backup_id"]] = machine.content[member["disk"]].copy()
    machine.write("root", 3 * MIB, len(service.content) % 250 + 1)
    return str(group["group_id"])


def _live_killed(service: Service, machine: Machine) -> str:
    """The group of a live backup that was killed amid its save."""
    argv, env = _live_command(service, machine)
    admin = service.admin
    known = {group["id"] for group in admin("GET", f"{_A}/groups")["groups"]}
    for _ in range(10):
        process = subprocess.Popen(
            [service.commands / argv[0], *argv[1:]], env={**os.environ, **env}
        )

        def new() -> Any:
            groups = admin("GET", f"{_A}/groups")["groups"]
            return next((group for group in groups if group["id"] not in known), None)

        group = soon(new)
        process.kill()
        process.wait()
        time.sleep(1)  # for the guard, which leaves the machine as it was
        if group and admin("GET", f"{_A}/groups/{group['id']}")["status"] == "SAVING":
            return str(group["id"])
        known.add(group["id"])
    raise AssertionError("every live backup was complete before it was killed")


def _copy_to(service: Service, id: str, token: str) -> None:
    """Ask for a copy of a volume on the node of which nothing is there but heartbeats."""
    _beat(service.agent("node2", token))
    request = {"source_volume": "clone-of-main", "affinity": "different_node:main"}
    volume = service.admin("PUT", f"{_A}/volumes/{id}", request)
    assert volume["node_id"] == "node2", volume
    service.content[id] = service.content["clone-of-main"].copy()


def _copied(service: Service) -> Any:
    """The hidden backup of the volume that is copied."""
    backups = service.admin("GET", "/v1.0/admin/backups?limit=1000")["backups"]
    return next(one for one in backups if one["volume_id"] == "clone-of-main")


def _wait_for_job(service: Service, account: str, id: str, status: str = "DONE") -> None:
    path = f"/v1.0/{account}/jobs/{id}"
    wait_until(lambda: service.admin("GET", path)["status"] == status, what=f"{path} is {status}")


def _wait_for_jobs(service: Service) -> None:
    """Wait until nothing is to be done but what must wait."""
    waiting = {"group.save", "repository.sweep", "volume.restore"}

    def idle() -> bool:
        jobs = service.admin("GET", "/v1.0/admin/jobs?limit=1000")["jobs"]
        live = [job for job in jobs if job["status"] in ("QUEUED", "RUNNING")]
        return not [job for job in live if job["kind"] not in waiting]

    wait_until(idle, what="all is done")


# --- scene 2 -------------------------------------------------------------------------


def _kill_amid_a_save(service: Service) -> None:
    """Kill everything while a worker writes a backup."""
    service.volume("interrupted")
    for attempt in range(20):
        service.write("interrupted", *range(0, 400 * MIB, 50 * MIB))
        id = f"interrupted-{attempt}"
        sessions = set(service.root.glob("store/default/sessions/*"))
        path = f"{_A}/volumes/interrupted/backups/{id}"
        service.admin("PUT", path, {})
        _stop_worker(service, sessions)
        time.sleep(0.5)
        if service.admin("GET", path)["status"] == "SAVING":
            service.kill()
            assert list(service.root.glob("store/default/sessions/*"))
            return
        service.stopped.clear()
        service.wait(path, "AVAILABLE")
        service.content[id] = service.content["interrupted"].copy()
    raise AssertionError("every save was done before it was stopped")


def _stop_worker(service: Service, sessions: set[Path]) -> None:
    """Stop the worker that saves, as soon as its session is in the store beside `sessions`."""
    worker = soon(lambda: next(service.pids(WORKER), None))
    soon(lambda: {*service.root.glob("store/default/sessions/*")} - sessions, 5.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
        service.stopped.append(worker)


# --- scene 3 -------------------------------------------------------------------------


def _play_the_agents(service: Service, token: str) -> None:
    """A job of every kind that failed, one that runs and one that is queued."""
    admin, agent = service.admin, service.agent()
    beat = admin("GET", f"/v1.0/admin/nodes/{NODE}")
    told = ("hostname", "portal", "pool", "target", "capacity_bytes", "free_bytes", "version")
    agent("PUT", "", {name: beat[name] for name in told})
    _beat(service.agent("node2", token))
    # Their next share of the daily verify, for the housekeeper to ask for.
    service.execute("UPDATE accounts SET verify_asked_at = NULL WHERE id <> 'default'")
    config = ("--config-file", str(service.root / "lunr.conf"))
    service.run("lunr-orbit", *config, "--once")
    _end_first(service, "repository.verify")
    # As if the clients whose saves they waited for were gone.
    service.execute(
        "DELETE FROM job_after WHERE job_id IN (SELECT id FROM jobs WHERE account_id <> 'default')"
    )
    _end_first(service, "repository.sweep")
    admin("POST", "/v1.0/admin/accounts/fourth/collect")
    _end_first(service, "repository.collect", again=False)
    admin("POST", "/v1.0/admin/accounts/fourth/collect")
    _claim(service, "repository.collect")
    admin("POST", "/v1.0/admin/accounts/second/collect")
    for fate in FATES:
        snapshot = admin("GET", f"{_A}/volumes/main/snapshots")["snapshots"][0]["id"]
        for kind, request in (
            ("volume.create", {"size": 1, **_HERE}),
            ("volume.clone", {"snapshot": snapshot, **_HERE}),
            ("volume.restore", {"backup": "main-patched", **_HERE}),
        ):
            _do(service, kind, fate, "PUT", f"volumes/{_spare(kind, fate)}", request)
        for kind, method, path, body in _orders(service, fate):
            _do(service, kind, fate, method, path, body)
    for fate, id in zip(FATES, ("stuck", "lazy", "clone-of-half"), strict=True):
        order = {"fill": "eager"}
        _do(service, "volume.fill", fate, "POST", f"volumes/{id}", order)
    admin("PUT", f"{_A}/volumes/cancelled", {"size": 1, **_HERE})
    job = admin("GET", f"{_A}/volumes/cancelled")["job_id"]
    admin("DELETE", f"{_A}/jobs/{job}")
    _copy_to(service, "copy-asked-for", token)
    for kind in ("volume.clone", "volume.create", "volume.restore"):
        for fate in ("r", "q"):
            source = {"volume.clone": "main-next", "volume.restore": "main-patched"}.get(kind)
            content = service.content[source] if source else Content()
            service.content[_spare(kind, fate)] = content.copy()


def _orders(service: Service, fate: str) -> list[tuple[str, str, str, Any]]:
    """Kind, method, path below the account, and body, of what makes each job."""
    admin = service.admin
    kept = _spare("snapshot.delete", fate)
    snapshot = admin("GET", f"{_A}/volumes/{kept}/snapshots")["snapshots"][0]["id"]
    export = {"initiator": INITIATOR, "ip": "127.0.0.1"}
    spare = {kind: f"volumes/{_spare(kind, fate)}" for kind in ON_SPARES}
    return [
        ("volume.extend", "POST", f"{spare['volume.extend']}/extend", {"size": 2}),
        ("volume.delete", "DELETE", spare["volume.delete"], None),
        ("snapshot.create", "POST", f"{spare['snapshot.create']}/snapshots", {}),
        ("snapshot.delete", "DELETE", f"snapshots/{snapshot}", None),
        ("export.create", "PUT", f"{spare['export.create']}/export", export),
        ("export.delete", "DELETE", f"{spare['export.delete']}/export", None),
        ("backup.save", "POST", f"{spare['backup.save']}/backups", {}),
        ("backup.delete", "DELETE", f"backups/{_spare('backup.delete', fate)}", None),
        ("backup.verify", "POST", f"backups/{_spare('backup.verify', fate)}/verify", {}),
    ]


def _do(service: Service, kind: str, fate: str, method: str, path: str, body: Any) -> None:
    service.admin(method, f"{_A}/{path}", body)
    if fate != "q":
        _claim(service, kind, fails=fate == "f")


def _end_first(service: Service, kind: str, again: bool = True) -> None:
    _claim(service, kind, fails=True)
    if again:
        _claim(service, kind)


def _claim(service: Service, kind: str, fails: bool = False) -> None:
    """Begin a job of that kind as the node would, and let it fail."""
    agent = service.agent()
    job = agent("POST", "/jobs/claim", {"kinds": [kind]})
    assert job is not None, f"no {kind} can be begun"
    if fails:
        error = {"code": "test", "reason": "The node said so.", "retry": False}
        told = {"lease": job["lease"], "status": "FAILED", "error": error}
        agent("PUT", f"/jobs/{job['id']}", told)
    else:
        told = {"lease": job["lease"], "status": "RUNNING", "progress": 33}
        agent("PUT", f"/jobs/{job['id']}", told)
