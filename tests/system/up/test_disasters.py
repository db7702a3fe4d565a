"""What is left when objects, the old key, or the whole database are gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lunr.client import Client
from lunr.client.errors import Conflict
from lunr.common.errors import LunrError
from tests.system.up.volumes import backup, export, holds, verify, volume
from tools.demos.stage import Disk, Lunr


def manage(lunr: Lunr, *arguments: str) -> Any:
    """What `lunr-manage` prints."""
    command = [sys.executable, "-m", "lunr.manage.main", "--config-file", lunr.root / "lunr.conf"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


def chunks(lunr: Lunr) -> set[Path]:
    """The objects with volumes' bytes that are in the store."""
    return set((lunr.root / "store").rglob("chunks/*/*"))


def test_a_backup_that_lost_something_is_never_taken_for_good(
    lunr: Lunr, client: Client, image: Path, tmp_path: Path
) -> None:
    others = chunks(lunr)
    id = volume(client)
    Disk(export(client, id), tmp_path).write_image(image, lambda _: None)
    first, second = backup(client, id), backup(client, id)
    assert client.backups.get(second).bytes_stored == 0
    lost = min(chunks(lunr) - others)
    lost.unlink()
    with pytest.raises(LunrError, match=f"(?s)damaged.*{lost.name}"):
        verify(client, first)
    for damaged in (first, second):
        record = client.backups.get(damaged)
        assert record.status == "AVAILABLE"
        assert lost.name in (record.damaged or "")
        with pytest.raises(Conflict, match="is damaged"):
            client.volumes.create(backup=damaged)
    third = backup(client, id)
    assert 0 < client.backups.get(third).bytes_stored < 20 << 20  # what was lost, and no more
    assert verify(client, third) == "DONE"
    assert holds(client, volume(client, backup=third), image, tmp_path)


def test_a_new_key_and_then_a_lost_database(
    lunr: Lunr, client: Client, image: Path, tmp_path: Path
) -> None:
    id = volume(client)
    Disk(export(client, id), tmp_path).write_image(image, lambda _: None)
    old = backup(client, id)
    manage(lunr, "key", "rotate")
    lunr.stop()
    lunr.start()
    lunr.wait_until_up()
    client = lunr.client()
    new = backup(client, id)
    assert client.backups.get(new).parent_id is None  # full
    counts = [(key["writes"], key["backups"]) for key in manage(lunr, "key", "list")["keys"]]
    assert counts == [(True, 1), (False, 1)]
    lunr.stop()
    for name in ("lunr.db", "lunr.db-wal", "lunr.db-shm", "keys/node.token", "openrc"):
        (lunr.root / name).unlink(missing_ok=True)
    lunr.start()
    lunr.wait_until_up()
    client = lunr.client()
    assert [record.id for record in client.backups.list()] == []
    assert manage(lunr, "rebuild", "--from-store") == {"made": 2, "there": 0, "failed": []}
    for known in (old, new):
        assert verify(client, known) == "DONE"
    assert holds(client, volume(client, backup=old), image, tmp_path)
