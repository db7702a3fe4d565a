"""A database that the code of an earlier commit has left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.old_data import COMMITS, OldData
from tests.support.waiting import PATIENCE, free_port, wait_until


@pytest.fixture(params=COMMITS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> OldData:
    return OldData(tmp_path, request.param)


@pytest.fixture
def url(old: OldData) -> Iterator[str]:
    """The API on that database, which was brought to today's schema."""
    port = free_port()
    conf = old.root / "lunr.conf"
    conf.write_text(conf.read_text().replace("bind_port = ", f"bind_port = {port}\n#", 1))
    config = ("--config-file", str(conf))
    manage = [sys.executable, "-m", "lunr.manage.main", *config, "database"]
    subprocess.run([*manage, "upgrade"], check=True, timeout=PATIENCE)
    subprocess.run([*manage, "check"], check=True, timeout=PATIENCE)
    with (old.root / "api.log").open("wb") as log:
        argv = [sys.executable, "-m", "lunr.api.main", *config]
        api = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port, api), what="the API answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        api.terminate()
        api.wait(PATIENCE)


def _answers(port: int, api: subprocess.Popen[bytes]) -> bool:
    assert api.poll() is None
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthcheck", timeout=5).ok
    except requests.ConnectionError:
        return False


def differences(path: str, old: Any, new: Any) -> Iterator[str]:
    """Where `new` does not say what `old` said; it may say more."""
    match old, new:
        case dict(), dict():
            for name, value in old.items():
                if name not in new:
                    yield f"{path}.{name} is gone"
                else:
                    yield from differences(f"{path}.{name}", value, new[name])
        case list(), list() if len(old) == len(new):
            for number, (one, other) in enumerate(zip(old, new, strict=True)):
                yield from differences(f"{path}[{number}]", one, other)
        case _:
            if old != new:
                yield f"{path} was {old!r} and is {new!r}"


def test_every_record_is_listed_and_shown_as_it_was(old: OldData, url: str) -> None:
    session = requests.Session()
    openrc = (old.root / "openrc").read_text()
    session.headers["X-Auth-Token"] = openrc.partition("LUNR_TOKEN=")[2].strip()
    found = []
    for path, answer in old.answers.items():
        if path.startswith("/v1.0/admin/backups?"):  # groups were listed as backups, too
            answer["backups"] = [one for one in answer["backups"] if one["id"] != one["group"]]
        response = session.get(url + path, timeout=PATIENCE)
        assert response.ok, f"{path}: {response.status_code} {response.text}"
        found += differences(path, answer, response.json())
    assert not found, "\n".join(found)
    session.close()


def test_tokens_open_what_they_opened(old: OldData, url: str) -> None:
    for account in ("second", "third", "fourth"):
        headers = {"X-Auth-Token": old.tokens[account]}
        own = requests.get(f"{url}/v1.0/{account}/volumes", headers=headers, timeout=PATIENCE)
        assert own.ok and own.json()["volumes"]
        other = requests.get(f"{url}/v1.0/default/volumes", headers=headers, timeout=PATIENCE)
        assert other.status_code == 404


def test_a_difference_is_seen() -> None:
    told = {"a": [{"b": 1}], "c": None}
    assert not list(differences("", told, {**told, "more": 1}))
    for other in ({"a": [{"b": 2}], "c": None}, {"a": [], "c": None}, {"a": [{"b": 1}]}):
        assert list(differences("", told, other))
