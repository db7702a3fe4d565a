"""tools/keystone touches nothing but its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.keystone import Keystone
from tests.support.services import CHECKOUT
from tests.support.waiting import PATIENCE


def _tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [CHECKOUT / "tools/keystone", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_it_stops_nothing_but_its_own(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        # As if the pid had been used again since: the time of birth is another.
        (tmp_path / "keystone.pid").write_text(f"{other.pid} 1")
        assert _tool("stop", tmp_path).returncode == 0
        assert other.poll() is None
        other.kill()


def test_it_removes_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "fernet").mkdir()
    refused = _tool("wipe", tmp_path)
    assert refused.returncode == 1
    assert "nothing was removed" in refused.stderr
    assert (tmp_path / "fernet").exists()


def test_started_twice_it_only_says_where_it_is(keystone: Keystone) -> None:
    again = _tool("start", keystone.root)
    assert again.returncode == 0
    assert f"export OS_AUTH_URL={keystone.admin.url}\n" in again.stdout
    elsewhere = _tool("start", keystone.root, "--port", "1")
    assert elsewhere.returncode == 1
    assert "it runs already" in elsewhere.stderr


def test_what_it_keeps_is_its_owners_alone(keystone: Keystone) -> None:
    assert keystone.root.stat().st_mode & 0o077 == 0
