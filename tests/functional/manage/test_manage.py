"""lunr-manage and lunr-orbit, as an operator runs them."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from lunr.api import orbit
from lunr.common import config, times
from lunr.manage.main import main
from tests.functional.manage.conftest import Manage


def test_bootstrap_makes_all_that_a_first_start_needs(manage: Manage) -> None:
    assert manage.bootstrap().exit_code == 0
    for name in ("master.key", "secret.key", "node.token", "openrc", "lunr.db"):
        assert stat.S_IMODE((manage.folder / name).stat().st_mode) == 0o600, name
    services = manage.services()
    token = (manage.folder / "openrc").read_text().rpartition("LUNR_TOKEN=")[2].strip()
    principal = services.tokens.identify(token)
    assert principal is not None
    assert (principal.role, principal.account_id) == ("admin", "a")
    node = services.tokens.identify((manage.folder / "node.token").read_text().strip())
    assert node is not None
    assert (node.role, node.node_id) == ("node", "n")
    services.close()


def test_bootstrap_again_changes_nothing(manage: Manage) -> None:
    manage.bootstrap()
    names = ("master.key", "secret.key", "node.token", "openrc")
    before = {name: (manage.folder / name).read_text() for name in names}
    assert manage.bootstrap().exit_code == 0
    assert {name: (manage.folder / name).read_text() for name in names} == before


def test_bootstrap_gives_a_node_whose_token_is_lost_a_new_one(manage: Manage) -> None:
    manage.bootstrap()
    old = (manage.folder / "node.token").read_text()
    (manage.folder / "node.token").unlink()
    assert manage.bootstrap().exit_code == 0
    new = (manage.folder / "node.token").read_text().strip()
    assert new != old
    services = manage.services()
    assert services.tokens.identify(new) is not None
    services.close()


def test_a_database_that_is_not_there_is_named_with_what_to_do(manage: Manage) -> None:
    result = manage("account", "list")
    assert result.exit_code == 1
    assert "lunr-manage database upgrade" in result.output


def test_a_key_that_is_there_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "key"
    run = CliRunner().invoke
    assert "made" in run(main, ["key", "make", str(file)]).output
    before = file.read_text()
    assert len(bytes.fromhex(before)) == 32
    assert "kept" in run(main, ["key", "make", str(file)]).output
    assert file.read_text() == before


def test_accounts_tokens_and_nodes(manage: Manage) -> None:
    assert manage("database", "upgrade").exit_code == 0
    assert manage("account", "create", "acme").exit_code == 0
    again = manage("account", "create", "acme")
    assert again.exit_code == 1
    assert "acme" in again.output
    made = json.loads(manage("token", "create", "acme").output)
    services = manage.services()
    assert services.tokens.identify(made["token"]) is not None
    listed = manage("token", "list", "acme")
    assert made["token"] not in listed.output
    assert manage("token", "revoke", "acme", made["id"]).exit_code == 0
    services.tokens.forget()
    assert services.tokens.identify(made["token"]) is None
    services.close()
    file = manage.folder / "n1.token"
    shown = manage("node", "create", "n1", "--token-file", str(file))
    assert file.read_text().strip() not in shown.output
    assert [node["id"] for node in json.loads(manage("node", "list").output)] == ["n1"]


@pytest.mark.parametrize("id", ["../x", "a/b", "", "x" * 300, "admin", "a\nb"])
def test_bad_account_ids_are_refused(manage: Manage, id: str) -> None:
    manage("database", "upgrade")
    result = manage("account", "create", "--", id)
    assert result.exit_code == 1
    assert json.loads(manage("account", "list").output) == []


def test_orbit_marks_a_silent_node_down_and_goes_on_after_a_failing_duty(
    manage: Manage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manage.bootstrap()
    services = manage.services()
    told = {"hostname": "h", "portal": "127.0.0.1:3260", "pool": "files", "target": "tgt"}
    room = {"capacity_bytes": 1 << 40, "free_bytes": 1 << 40, "version": "1", "sessions": {}}
    services.nodes.heartbeat("n", {**told, **room})
    assert services.nodes.get("n")["status"] == "ACTIVE"
    housekeeper = orbit.Housekeeper(services, config.load(["--config-file", str(manage.file)]))
    later = times.now() + timedelta(hours=1)
    monkeypatch.setattr(times, "now", lambda: later)

    def broken(_now: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(services.leases, "expire", broken)
    housekeeper.round()
    assert services.nodes.get("n")["status"] == "DOWN"
    assert "ZeroDivisionError" in caplog.text
    services.close()
