"""Restored volumes that are used while they are filled, over iSCSI."""

from __future__ import annotations

from pathlib import Path

import pytest

from lunr.client import Client, errors
from lunr.common import units
from tests.support.waiting import PATIENCE, wait_until
from tests.system.up.restores import MIB, Written, fill, reboot, restored
from tests.system.up.volumes import delete_export, export, holds, matches, store, volume
from tools.demos.stage import DemoError, Disk, Lunr, Session, run


def test_it_is_read_before_it_is_filled(
    lunr: Lunr, client: Client, stored: str, content: Path, tmp_path: Path
) -> None:
    id = restored(client, stored, size=2)
    session = Session(Disk(export(client, id), tmp_path), tmp_path)
    try:
        session.read(150 * MIB, MIB, 0)
        session.read(units.GIB, MIB, 0)  # past the backup's end
    finally:
        session.close()
    seen = client.volumes.get(id)
    assert (seen.status, seen.usable, seen.fill, seen.progress < 100) == (
        *("RESTORING", True, "never"),
        True,
    )
    with pytest.raises(errors.InUse, match=id):
        client.backups.delete(stored)
    other = restored(client, stored, fill="eager", fill_limit=4)
    wait_until(lambda: client.volumes.get(other).fill_rate, what="its rate is told")
    assert client.volumes.get(other).fill_remaining is not None
    fill(client, other)
    assert holds(client, other, content, tmp_path)
    client.volumes.update(id, fill="lazy")
    assert client.volumes.wait(id, timeout=PATIENCE).fill is None
    client.backups.delete(stored)


def test_once_it_is_full_who_is_logged_in_uses_the_pool_s_file(
    lunr: Lunr, client: Client, written: tuple[str, Written], tmp_path: Path
) -> None:
    id, one = written
    session = Session(one.disk, tmp_path)
    try:
        fill(client, id)
        session.read(150 * MIB, MIB, 0)
        wait_until(lambda: id not in lunr.fillers(), what="its process has ended")
        session.read(150 * MIB, MIB, 0)
        session.flush()
        wait_until(lambda: client.exports.get(id).sessions, what="it is logged in as before")
    finally:
        session.close()
    one.write()
    assert matches(one.disk, one.copy, tmp_path)


def test_a_backup_of_it_is_whole(
    lunr: Lunr, client: Client, written: tuple[str, Written], stored: str, tmp_path: Path
) -> None:
    id, one = written
    taken = client.backups.wait(client.backups.create(id).id, timeout=PATIENCE)
    assert taken.parent_id == stored
    assert taken.bytes_stored < 5 * MIB
    assert client.volumes.get(id).progress < 100
    again = volume(client, backup=taken.id)
    assert holds(client, again, one.copy, tmp_path)
    fill(client, id)
    later = client.backups.wait(client.backups.create(id).id, timeout=PATIENCE)
    assert later.parent_id == taken.id
    assert holds(client, volume(client, backup=later.id), one.copy, tmp_path)


def test_what_can_not_be_is_refused(client: Client, stored: str) -> None:
    id = restored(client, stored)
    with pytest.raises(errors.Conflict, match=r"still being restored \(\d+ % are there\)"):
        client.volumes.extend(id, 3)


def test_its_snapshots_and_clones_hold_their_moment(
    lunr: Lunr,
    client: Client,
    written: tuple[str, Written],
    stored: str,
    tmp_path: Path,
) -> None:
    id, one = written
    snapshot = client.snapshots.wait(client.snapshots.create(id).id, timeout=PATIENCE)
    moment = tmp_path / "moment"
    run(["cp", "--sparse=always", one.copy, moment])
    clone = client.volumes.create(source_volume=id).id
    client.volumes.wait_usable(clone, timeout=PATIENCE)
    one.write()
    reboot(lunr)
    full = client.backups.wait(client.backups.create(id, full=True).id, timeout=PATIENCE)
    assert full.parent_id is None
    delete_export(client, id, force=True)
    fill(client, id)
    fill(client, clone)
    with pytest.raises(errors.InUse, match=f"the snapshot {snapshot.id}"):
        client.backups.delete(stored)
    made = client.volumes.create(snapshot=snapshot.id).id
    client.volumes.wait_usable(made, timeout=PATIENCE)
    saved = client.backups.create(id, snapshot=snapshot.id)
    taken = client.backups.wait(saved.id, timeout=PATIENCE)
    assert (taken.parent_id, taken.bytes_stored < 5 * MIB) == (stored, True)
    client.snapshots.delete(snapshot.id)
    client.snapshots.wait_deleted(snapshot.id, timeout=PATIENCE)
    for copy, held in (
        (clone, moment),
        (made, moment),
        (volume(client, backup=taken.id), moment),
        (volume(client, backup=full.id), one.copy),
    ):
        assert holds(client, copy, held, tmp_path)
    fill(client, made)
    client.backups.delete(stored)
    assert list((lunr.root / "state" / "lacking").iterdir()) == []


def test_deleted_while_it_is_filled_nothing_is_left(
    lunr: Lunr, client: Client, stored: str
) -> None:
    id = restored(client, stored, fill="eager", fill_limit=1)
    export(client, id)
    assert id in lunr.fillers()
    delete_export(client, id)
    client.volumes.delete(id)
    client.volumes.wait_deleted(id, timeout=PATIENCE)
    assert lunr.fillers() == {}
    assert list((lunr.root / "state" / "fillings").iterdir()) == []
    assert list((lunr.root / "run" / "fillings").iterdir()) == []
    assert id not in Path("/proc/self/mountinfo").read_text()
    client.backups.delete(stored)


def objects(lunr: Lunr) -> set[Path]:
    """The files of the store."""
    return {path for path in (lunr.root / "store").rglob("*") if path.is_file()}


def test_a_damaged_object_costs_its_blocks_alone(
    lunr: Lunr, client: Client, image: Path, tmp_path: Path
) -> None:
    others = objects(lunr)
    _, taken = store(client, image, tmp_path)
    damaged = max(objects(lunr) - others, key=lambda path: path.stat().st_size)
    with damaged.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(bytes(100))
    id = restored(client, taken, fill="eager")
    wait_until(lambda: client.volumes.get(id).reason, what="it says why it does not go on")
    seen = client.volumes.get(id)
    assert seen.status == "RESTORING" and seen.usable
    assert seen.progress >= 99 and damaged.name in (seen.reason or "")
    client.volumes.update(id, fill="lazy")  # tried again, in vain
    assert client.volumes.get(id).reason is None
    wait_until(lambda: client.volumes.get(id).reason, what="it says so again")
    assert damaged.name in (client.volumes.get(id).reason or "")
    disk = Disk(export(client, id), tmp_path)
    with pytest.raises(DemoError):  # part of it is lost
        matches(disk, image, tmp_path)
    # Written again, it is whole.
    disk.write_image(image, lambda _: None)
    client.volumes.update(id, fill="eager")
    assert client.volumes.wait(id, timeout=PATIENCE).status == "ACTIVE"
    assert holds(client, id, image, tmp_path)
