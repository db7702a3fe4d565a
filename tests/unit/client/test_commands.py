"""The `lunr` command, in this process, against a scripted server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lunr.client.cli.main import cli
from tests.support.scripted_server import Reply, ScriptedServer, Seen, error
from tests.unit.client.conftest import TOKEN

Run = Callable[..., Result]

ID = "5a1c0ffe-0000-4000-8000-00000000beef"
VOLUME = {
    "id": ID,
    "status": "ACTIVE",
    "name": "data",
    "size": 10,
    "progress": 100,
    "volume_type_name": "default",
    "metadata": {"os": "debian"},
    "created_at": "2026-11-23T12:00:00.123456Z",
}
EXPORT = {
    "volume_id": ID,
    "status": "ATTACHED",
    "ip": "10.0.0.5",
    "target_iqn": f"iqn.2026-11.io.lunr:{ID}",
    "target_portal": "10.0.0.2:3260",
    "target_lun": 1,
    "auth_method": "CHAP",
    "auth_username": "someone",
    "auth_password": "hush-hush",
}


@pytest.fixture
def run(server: ScriptedServer) -> Run:
    """Runs the command with the server's address in the environment."""
    env = {"LUNR_URL": server.url, "LUNR_ACCOUNT": "acme", "LUNR_TOKEN": TOKEN}

    def run(*args: str, **options: Any) -> Result:
        return CliRunner(env=env).invoke(cli, args, **options)

    return run


def test_a_list_for_people(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, {"volumes": [VOLUME], "next": None}))
    result = run("volume", "list", "--status", "ACTIVE", "-m", "os=debian")
    assert result.exit_code == 0
    header, line = result.stdout.splitlines()
    assert header.split()[:4] == ["id", "name", "size", "status"]
    assert line.split() == ([ID, "data", "10", "GiB", "ACTIVE", "-", "2026-11-23", "12:00:00"])
    assert server.requests[0].query == {"status": "ACTIVE", "metadata.os": "debian"}


def test_a_list_for_scripts(server: ScriptedServer, run: Run) -> None:
    server.script(
        Reply(200, {"volumes": [{**VOLUME, "new_field": 1}], "next": ID}),
        Reply(200, {"volumes": [], "next": None}),
    )
    [volume] = json.loads(run("volume", "list", "--json").stdout)
    assert volume["new_field"] == 1
    assert volume["metadata"] == {"os": "debian"}


def test_an_empty_list(server: ScriptedServer, run: Run) -> None:
    server.handler = lambda _: Reply(200, {"volumes": [], "next": None})
    assert json.loads(run("volume", "list", "--json").stdout) == []
    assert run("volume", "list").exit_code == 0


def test_a_limit_fetches_no_more_pages(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, {"volumes": [VOLUME, VOLUME], "next": ID}))
    assert len(json.loads(run("volume", "list", "--limit", "2", "--json").stdout)) == 2
    assert len(server.requests) == 1


def test_create_waits_until_the_volume_can_be_used(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(202, {**VOLUME, "status": "NEW"}), Reply(200, VOLUME))
    result = run("volume", "create", "--size", "1T", "--name", "data", "-m", "a=b=c", "--json")
    assert json.loads(result.stdout)["status"] == "ACTIVE"
    put, get = server.requests
    assert put.method == "PUT"
    assert put.body == {"size": 1024, "name": "data", "metadata": {"a": "b=c"}}
    assert get.method == "GET"


def test_create_need_not_wait(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(202, {**VOLUME, "status": "NEW"}))
    result = run("volume", "create", "--size", "1", "--no-wait", "--json")
    assert json.loads(result.stdout)["status"] == "NEW"
    assert len(server.requests) == 1


def test_what_fails_later_fails_the_command(server: ScriptedServer, run: Run) -> None:
    server.script(
        Reply(202, {**VOLUME, "status": "NEW"}),
        Reply(200, {**VOLUME, "status": "ERROR", "reason": "The pool is full."}),
    )
    result = run("volume", "create", "--size", "1")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"error: The volume {ID} is ERROR: The pool is full. (job_failed)\n"


def test_a_timeout_is_an_error(server: ScriptedServer, run: Run) -> None:
    server.handler = lambda _: Reply(200, {**VOLUME, "status": "BUILDING"})
    result = run("volume", "wait", ID, "--timeout", "0")
    assert (result.exit_code, "(timeout)" in result.stderr) == (1, True)


def test_an_error_is_one_line_with_code_and_request(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(404, error("not_found", f"There is no volume {ID}.\x1b[2J\nReally.")))
    result = run("volume", "show", ID)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: There is no volume {ID}.\\x1b[2J\\nReally. (not_found, request req-1)\n"
    )


def test_an_api_that_is_not_there(run: Run) -> None:
    result = run("--url", "http://127.0.0.1:1", "volume", "list")
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr
    assert "(unreachable)" in result.stderr


def test_what_is_missing_in_the_environment_is_named() -> None:
    env = {"LUNR_URL": None, "LUNR_ACCOUNT": "acme", "LUNR_TOKEN": None}
    result = CliRunner(env=env).invoke(cli, ["volume", "list"])
    assert result.exit_code == 1
    assert "LUNR_URL, LUNR_TOKEN not set" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("volume", "create"),
        ("volume", "create", "--size", "0"),
        ("volume", "create", "--size", "-1"),
        ("volume", "create", "--size", "10X"),
        ("volume", "create", "--size", "1", "--from-backup", "b", "--from-snapshot", "s"),
        ("volume", "create", "--size", "1", "-m", "nothing"),
        ("volume", "create", "--size", "1", "-m", "a=1", "-m", "a=2"),
        ("volume", "show", "../etc"),
        ("volume", "show", "a" * 65),
        ("volume", "update", ID),
        ("volume", "delete"),
        ("volume", "wait", ID, "--timeout", "-1"),
        ("export", "create", ID),
        ("node", "update", "n1"),
        ("node", "update", "n1", "--status", "DOWN"),
        ("account", "update", "shop"),
        ("account", "create", "shop", "--quota", "volumes=many"),
        ("type", "update", "fast"),
        ("type", "create", "fast", "--read-iops", "-1"),
        ("--openrc", "/nonexistent", "volume", "list"),
        ("nonsense",),
    ],
)
def test_wrong_usage_sends_nothing(server: ScriptedServer, run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage:")
    assert server.requests == []


def test_deleting_several_tells_of_each(server: ScriptedServer, run: Run) -> None:
    def answer(seen: Seen) -> Reply:
        id = seen.path.rsplit("/", 1)[1]
        if id == "b":
            return Reply(409, error("in_use", "The volume b is in use: it is exported."))
        return Reply(
            200, {"id": id, "status": "DELETING" if seen.method == "DELETE" else "DELETED"}
        )

    server.handler = answer
    result = run("volume", "delete", "a", "b", "c", "a")
    assert result.exit_code == 1
    assert result.stdout == "volume a is gone\nvolume c is gone\n"
    assert result.stderr == "error: The volume b is in use: it is exported. (in_use)\n"
    assert [seen.method for seen in server.requests].count("DELETE") == 3

    as_json = run("volume", "delete", "a", "b", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout) == [
        {"id": "a", "status": "DELETED"},
        {
            "id": "b",
            "status": "FAILED",
            "code": "in_use",
            "reason": "The volume b is in use: it is exported.",
        },
    ]


def test_an_export_is_shown_without_its_password(server: ScriptedServer, run: Run) -> None:
    server.handler = lambda _: Reply(200, EXPORT)
    shown = run("export", "show", ID).stdout
    assert "hush-hush" not in shown
    assert f"iscsiadm -m node -T iqn.2026-11.io.lunr:{ID} -p 10.0.0.2:3260 --login" in shown
    assert f'-v "$(lunr export password {ID})"' in shown
    assert "qemu-img info --object secret,id=chap,file=<(" in shown
    assert run("export", "password", ID).stdout == "hush-hush\n"
    assert "hush-hush" in run("export", "show", ID, "--show-secret").stdout
    assert json.loads(run("export", "show", ID, "--json").stdout)["auth_password"] == "hush-hush"


def test_what_a_server_says_can_not_be_pasted_into_a_shell(
    server: ScriptedServer, run: Run
) -> None:
    evil = {**EXPORT, "target_iqn": "iqn.x; rm -rf /", "auth_username": "$(reboot)"}
    server.script(Reply(200, evil))
    lines = run("export", "show", ID).stdout.split("\n\n")[1]
    assert "-T 'iqn.x; rm -rf /' -p" in lines
    assert "-v '$(reboot)'" in lines


def test_a_verification_is_a_job(server: ScriptedServer, run: Run) -> None:
    job = {"id": "j1", "kind": "backup.verify", "status": "QUEUED"}
    failed = {**job, "status": "FAILED", "code": "corrupt", "reason": "The chunk 7 is damaged."}
    server.script(Reply(202, job), Reply(200, failed))
    result = run("backup", "verify", "b1")
    assert result.exit_code == 1
    assert result.stderr == "error: The job j1 failed: The chunk 7 is damaged. (corrupt)\n"


def test_quotas(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, {"id": "shop", "quotas": {"volumes": 5, "gigabytes": None}}))
    args = ("account", "create", "shop", "--quota", "volumes=5", "--quota", "gigabytes=default")
    assert "volumes=5, gigabytes=-" in run(*args).stdout
    assert server.requests[0].body == {"id": "shop", "quotas": {"volumes": 5, "gigabytes": None}}


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_person_is_asked_before_something_is_lost(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, run: Run, answer: str, deleted: bool
) -> None:
    monkeypatch.setattr("lunr.client.cli.options._is_person", lambda: True)
    server.handler = lambda _: Reply(200, {"id": "a", "status": "DELETED"})
    result = run("volume", "delete", "a", input=answer)
    assert "Delete a and all data on it?" in result.output
    assert bool(server.requests) is deleted
    assert (result.exit_code == 0) is deleted
    server.requests.clear()
    assert run("volume", "delete", "a", "--yes").exit_code == 0
    assert server.requests


def test_an_interrupted_wait_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, run: Run
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lunr.client.waiting.time.sleep", interrupt)
    server.handler = lambda _: Reply(200, {**VOLUME, "status": "BUILDING"})
    result = run("volume", "wait", ID)
    assert result.exit_code == 130
    assert f"lunr volume wait {ID}" in result.stderr


def commands(command: click.Command, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command below one, with the words that lead to it."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, *path, name)
    return found


ALL = commands(cli)


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_explains_itself(run: Run, path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    command = dict(ALL)[path]
    assert command.help
    if isinstance(command, click.Group):
        assert "Examples:" in command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_no_secret_is_ever_an_option() -> None:
    options = {o for _, command in ALL for param in command.params for o in param.opts}
    assert not {o for o in options if "token" in o or "password" in o} - {"token_id"}


def test_every_command_speaks_json() -> None:
    for path, command in ALL:
        leaf = not isinstance(command, click.Group)
        if leaf and path[-1] not in ("completion", "password"):
            assert "as_json" in {param.name for param in command.params}, path


RETENTION = {
    "volume_id": ID,
    "rules": {"keep_daily": 7},
    "rules_of": "volume",
    "backups": [
        {"id": "b2", "name": "n", "status": "AVAILABLE", "keep": True, "reasons": ["daily 1"]},
        {"id": "b1", "name": "n", "status": "AVAILABLE", "keep": False, "reasons": []},
    ],
}


def test_what_rules_keep_is_shown_with_the_reasons(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, RETENTION))
    result = run("volume", "retention", "show", ID)
    assert result.exit_code == 0
    whose, _, kept, gone = result.stdout.splitlines()
    assert whose == "its own rules: keep_daily=7"
    assert kept.split()[-3:] == ["True", "daily", "1"]
    assert gone.split()[-2:] == ["False", "-"]


def test_rules_are_sent_all_at_once(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, RETENTION), Reply(200, RETENTION))
    assert run("volume", "retention", "set", ID, "--keep-daily", "7").exit_code == 0
    assert run("volume", "retention", "set", ID, "--keep-all").exit_code == 0
    assert [seen.body for seen in server.requests] == [{"keep_daily": 7}, {}]
    for wrong in ([], ["--keep-all", "--keep-last", "1"]):
        assert run("volume", "retention", "set", ID, *wrong).exit_code == 2
    assert len(server.requests) == 2


def test_prune_asks_the_server_twice_and_a_dry_run_only_once(
    server: ScriptedServer, run: Run
) -> None:
    server.script(Reply(200, RETENTION), Reply(200, RETENTION), Reply(202, RETENTION))
    assert run("backup", "prune", ID, "--dry-run", "--keep-last", "1").exit_code == 0
    assert run("backup", "prune", ID, "--yes", "--json").exit_code == 0
    dry = {"all": False, "dry_run": True}
    assert [seen.body for seen in server.requests] == [
        {"keep_last": 1, **dry},
        dry,
        {**dry, "dry_run": False},
    ]


def test_a_schedule_is_for_one_volume_or_one_type(server: ScriptedServer, run: Run) -> None:
    answer = {"id": "s1", "every": "1d", "next_run": "2026-11-24T03:30:00.000000Z"}
    server.script(Reply(200, answer), Reply(200, answer))
    result = run("schedule", "create", "--volume", ID, "--every", "1d", "--at", "03:30")
    assert "2026-11-24 03:30:00" in result.stdout
    assert run("schedule", "create", "--type", "fast", "--every", "6h").exit_code == 0
    assert [(seen.path, seen.body) for seen in server.requests] == [
        ("/v1.0/acme/schedules", {"volume_id": ID, "every": "1d", "at": "03:30"}),
        ("/v1.0/admin/schedules", {"volume_type_name": "fast", "every": "6h"}),
    ]
    for wrong in ([], ["--volume", ID, "--type", "fast"]):
        assert run("schedule", "create", "--every", "1d", *wrong).exit_code == 2


GROUP = {
    "id": "web-1",
    "machine": "web",
    "status": "AVAILABLE",
    "created_at": "2026-11-23T12:00:00.123456Z",
    "backups": [{"id": "web-1-root", "name": "root", "size": 3, "status": "AVAILABLE"}],
}


def test_a_group_with_its_backups(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, GROUP), Reply(200, GROUP))
    shown = run("group", "show", "web-1").stdout.splitlines()
    assert shown[0].startswith("machine web, AVAILABLE")
    assert shown[-1].split()[:4] == ["web-1-root", "root", "-", "3"]
    assert json.loads(run("group", "show", "web-1", "--json").stdout)["machine"] == "web"


def test_groups_of_a_machine(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(200, {"groups": [GROUP], "next": None}))
    result = run("group", "list", "--machine", "web")
    assert result.stdout.splitlines()[1].split()[:3] == ["web-1", "web", "AVAILABLE"]
    assert server.requests[0].query == {"machine": "web"}


def test_a_group_is_deleted(server: ScriptedServer, run: Run) -> None:
    server.script(Reply(202, {**GROUP, "status": "DELETING"}))
    assert run("group", "delete", "web-1", "--no-wait").stdout == "group web-1 is being deleted\n"
    assert server.requests[0].method == "DELETE"
