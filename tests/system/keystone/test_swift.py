"""Backups in a real Swift that believes a real Keystone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Geometry
from lunr.backup.stores import open_store
from lunr.backup.stores.base import Store
from lunr.common.openstack import swift_options
from tests.functional.backup.test_worker import KEY, Worker
from tests.unit.backup.stores.contract import StoreContract
from tests.unit.backup.support import load_bytes, repository, save_bytes
from tools.services import identity

LUNR = Path(sys.executable).with_name("lunr")


@pytest.fixture
def place() -> str:
    """A container's prefix that nobody else uses."""
    return f"swift:test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def options(keystone_swift: dict[str, str]) -> dict[str, Any]:
    """The options of group ``[swift]``, with ``key``."""
    return {
        "auth_url": keystone_swift["OS_AUTH_URL"],
        "auth_version": "3",
        "user": keystone_swift["OS_USERNAME"],
        "key": keystone_swift["OS_PASSWORD"],
        "project_name": keystone_swift["OS_PROJECT_NAME"],
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": "",
        "cacert": "",
        "timeout": 60.0,
        "retries": 1,
    }


class TestSwift(StoreContract):
    @pytest.fixture
    def store(self, options: dict[str, Any], place: str) -> Iterator[Store]:
        store = open_store(place, "account", options)
        yield store
        store.close()


def test_many_threads(options: dict[str, Any], place: str) -> None:
    store = open_store(place, "account", options)
    geometry = Geometry(block=4096, chunk=65536, segment_chunks=16)
    data = os.urandom(65536 * 40)
    save_bytes(repository(store), data, "b1", geometry=geometry, concurrency=8)
    assert load_bytes(repository(store), "b1") == data
    store.close()


def test_a_node_saves_and_restores(options: dict[str, Any], place: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(9 << 20))
    target.write_bytes(bytes(9 << 20))
    common = {
        "store": {"url": place, "options": options},
        "key": KEY,
        "repository": "account",
        "concurrency": 4,
        "compression": "zstd",
        "size_bytes": 9 << 20,
        "backup_id": "b",
    }
    saved = Worker(
        task="save",
        source=str(source),
        volume_id="v",
        parent_id=None,
        condemned=[],
        created_at="2026-11-23T00:00:00Z",
        **common,
    ).end()
    assert saved[0] == 0, saved
    restored = Worker(task="restore", target=str(target), **common).end()
    assert restored[0] == 0, restored
    assert target.read_bytes() == source.read_bytes()
    assert options["key"] not in saved[2] + restored[2]


def test_a_person_saves_and_restores(
    keystone_swift: dict[str, str], place: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(5 << 20))

    def engine(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [LUNR, "engine", *arguments, "--store", place, "--json"],
            env={**os.environ, **keystone_swift},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    assert engine("save", str(source), "--id", "b")["objects_stored"] == 3
    engine("restore", "b", str(target))
    assert target.read_bytes() == source.read_bytes()


def identity_of(env: dict[str, str], kind: str) -> dict[str, str]:
    """The variables of another openrc file for the same project: "project", or "credential"."""
    scope = identity.project(env["OS_PROJECT_NAME"])
    user = identity.by_password(env["OS_USERNAME"], env["OS_PASSWORD"])
    keystone = identity.Account(
        env["OS_AUTH_URL"], identity.log_in(env["OS_AUTH_URL"], user, scope)
    )
    token = keystone.call("GET", "/auth/tokens", **{"X-Subject-Token": keystone.token})["token"]
    bare = {name: value for name, value in env.items() if "PROJECT" not in name}
    if kind == "project":
        return {**bare, "OS_PROJECT_ID": token["project"]["id"], "OS_USER_DOMAIN_ID": "default"}
    path = f"/users/{token['user']['id']}/application_credentials"
    asked = {"application_credential": {"name": uuid.uuid4().hex}}
    made = keystone.call("POST", path, asked)["application_credential"]
    return {
        "OS_AUTH_URL": env["OS_AUTH_URL"],
        "OS_AUTH_TYPE": "v3applicationcredential",
        "OS_APPLICATION_CREDENTIAL_ID": made["id"],
        "OS_APPLICATION_CREDENTIAL_SECRET": made["secret"],
    }


@pytest.mark.parametrize("kind", ["project", "credential"])
def test_other_openrc_files_of_the_project_log_in(
    keystone_swift: dict[str, str], options: dict[str, Any], place: str, kind: str
) -> None:
    store = open_store(place, "account", options)
    store.put("roots/b", b"content")
    store.close()
    other = swift_options(identity_of(keystone_swift, kind))
    store = open_store(place, "account", other)
    assert bytes(store.get("roots/b")) == b"content"
    store.close()
    store = open_store(place, "account", {**other, "key": "wrong", "retries": 0})
    with pytest.raises(errors.StoreRefused):
        store.get("roots/b")
    store.close()


@pytest.mark.parametrize("ending", ["", "/", "/v3", "/v3/"])
def test_the_url_of_keystone_may_name_its_version(
    options: dict[str, Any], place: str, ending: str
) -> None:
    url = options["auth_url"].removesuffix("/v3") + ending
    store = open_store(place, "account", {**options, "auth_url": url})
    assert list(store.list()) == []
    store.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"key": "wrong"}, "requires authentication"),
        ({"project_name": "strange"}, "requires authentication"),
        ({"project_name": ""}, "project_name"),
        ({"region_name": "Nowhere"}, "Nowhere"),
    ],
)
def test_what_only_an_operator_can_mend_is_told_at_once(
    options: dict[str, Any], place: str, change: dict[str, str], told: str
) -> None:
    store = open_store(place, "account", {**options, **change})
    with pytest.raises(errors.StoreRefused, match=told):
        store.get("roots/b")
    store.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v3", "http://127.0.0.1:1"])
def test_a_keystone_that_is_away_may_come_back(
    options: dict[str, Any], place: str, url: str
) -> None:
    store = open_store(place, "account", {**options, "auth_url": url})
    with pytest.raises(errors.StoreUnavailable, match="Keystone"):
        store.get("roots/b")
    store.close()
