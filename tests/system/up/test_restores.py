"""Restored volumes that are used while they are filled, over iSCSI."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lunr.client import Client, errors
from lunr.common import units
from tests.support.waiting import wait_until
from tests.system.backup.image.mounted import need_fuse
from tests.system.up.test_up import backup, export, holds, reads, volume
from tools.demos.stage import Disk, Lunr, Session

MIB = units.MIB
#: Where the content has data.
PLACES = (0, 300 * MIB, units.GIB - 10 * MIB)


@pytest.fixture
def stored(lunr: Lunr, client: Client, image: Path, tmp_path: Path) -> str:
    """A backup with the content of `image`."""
    need_fuse()
    id = volume(client)
    Disk(export(client, id), tmp_path).write_image(image, lambda _: None)
    taken = backup(client, id)
    client.exports.delete(id)
    client.exports.wait_deleted(id, timeout=30)
    return taken


def restored(client: Client, taken: str, fill: str = "never", **options: object) -> str:
    """A new volume from a backup, as soon as it can be used."""
    id = client.volumes.create(backup=taken, fill=fill, **options).id  # type: ignore[arg-type]
    client.volumes.wait_usable(id, timeout=30)
    return id


def fill(client: Client, id: str) -> None:
    """Have it filled, if it was not by being read."""
    with contextlib.suppress(errors.WrongState):
        client.volumes.update(id, fill="eager", fill_limit=0)
    assert client.volumes.wait(id, timeout=60).status == "ACTIVE"


class Written:
    """A volume that is written to here and there, and a copy of it to compare with."""

    def __init__(self, client: Client, id: str, image: Path, folder: Path) -> None:
        self.copy = folder / f"copy-of-{id}"
        self.copy.write_bytes(image.read_bytes())
        self.disk = Disk(export(client, id), folder)
        self._folder = folder
        self._random = random.Random(id)

    def write(self) -> None:
        """Log in and write at 8 places, the half of them where there is data; synced."""
        session = Session(self.disk, self._folder)
        try:
            for number in range(8):
                length = self._random.choice((4096, 512, 12288, 64 << 10))
                base = self._random.choice(PLACES) if number % 2 else 500 * MIB
                offset = base + self._random.randrange(0, 9 * MIB, 512)
                piece = self._folder / "piece"
                piece.write_bytes(data := self._random.randbytes(length))
                session.write(piece, offset, length)
                with self.copy.open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
            session.flush()
        finally:
            session.close()


@pytest.fixture
def written(client: Client, stored: str, image: Path, tmp_path: Path) -> tuple[str, Written]:
    id = restored(client, stored)
    one = Written(client, id, image, tmp_path)
    one.write()
    return id, one


def test_it_is_read_before_it_is_filled(
    lunr: Lunr, client: Client, stored: str, image: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    id = restored(client, stored, size=2)
    session = Session(Disk(export(client, id), tmp_path), tmp_path)
    try:
        session.read(150 * MIB, MIB, 0)
        session.read(units.GIB, MIB, 0)  # past the backup's end
    finally:
        session.close()
    assert time.monotonic() - begun < 15
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
    assert holds(client, other, image, tmp_path)
    client.volumes.update(id, fill="lazy")
    assert client.volumes.wait(id, timeout=60).fill is None
    client.backups.delete(stored)


def kill_worker(lunr: Lunr, id: str) -> None:
    pid = lunr.fillers()[id]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lunr.fillers().get(id, pid) != pid, what="another one serves")


def kill_part(name: str) -> Callable[[Lunr, str], None]:
    def kill(lunr: Lunr, _id: str) -> None:
        pid = lunr.parts()[name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lunr.parts().get(name, pid) != pid, what=f"{name} is back")

    return kill


def kill_all(lunr: Lunr, id: str) -> None:
    pid = lunr.fillers()[id]
    lunr.kill()
    lunr.start()
    lunr.wait_until_up()
    assert lunr.fillers()[id] == pid, "it went on meanwhile"


def kill_agent_and_worker(lunr: Lunr, id: str) -> None:
    os.kill(lunr.fillers()[id], signal.SIGKILL)
    kill_part("storage")(lunr, id)


def reboot(lunr: Lunr, _id: str) -> None:
    lunr.reboot()
    lunr.start()
    lunr.wait_until_up()


@pytest.mark.parametrize(
    "mishap",
    [kill_worker, kill_part("storage"), kill_part("tgtd"), kill_agent_and_worker, kill_all, reboot],
    ids=["worker", "agent", "tgtd", "agent and worker", "all but the worker", "reboot"],
)
def test_what_was_written_survives(
    lunr: Lunr,
    client: Client,
    written: tuple[str, Written],
    mishap: Callable[[Lunr, str], None],
    tmp_path: Path,
) -> None:
    id, one = written
    mishap(lunr, id)
    copy = tmp_path / "seen"
    # qemu's initiator hangs when a login is refused that it did not expect to be.
    wait_until(lambda: reads(one.disk, copy, 20), what="it can be read again")
    assert copy.read_bytes() == one.copy.read_bytes()
    one.write()
    fill(client, id)
    assert holds(client, id, one.copy, tmp_path)


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
    copy = tmp_path / "seen"
    assert reads(one.disk, copy, 20)
    assert copy.read_bytes() == one.copy.read_bytes()


def test_a_backup_of_it_is_whole(
    lunr: Lunr, client: Client, written: tuple[str, Written], stored: str, tmp_path: Path
) -> None:
    id, one = written
    taken = client.backups.wait(client.backups.create(id).id, timeout=60)
    assert taken.parent_id == stored
    assert taken.bytes_stored < 5 * MIB
    assert client.volumes.get(id).progress < 100
    again = volume(client, backup=taken.id)
    assert holds(client, again, one.copy, tmp_path)
    fill(client, id)
    later = client.backups.wait(client.backups.create(id).id, timeout=60)
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
    snapshot = client.snapshots.wait(client.snapshots.create(id).id, timeout=30)
    moment = tmp_path / "moment"
    moment.write_bytes(one.copy.read_bytes())
    clone = client.volumes.create(source_volume=id).id
    client.volumes.wait_usable(clone, timeout=30)
    one.write()
    reboot(lunr, id)
    full = client.backups.wait(client.backups.create(id, full=True).id, timeout=60)
    assert full.parent_id is None
    client.exports.delete(id, force=True)
    client.exports.wait_deleted(id, timeout=30)
    fill(client, id)
    fill(client, clone)
    with pytest.raises(errors.InUse, match=f"the snapshot {snapshot.id}"):
        client.backups.delete(stored)
    made = client.volumes.create(snapshot=snapshot.id).id
    client.volumes.wait_usable(made, timeout=30)
    saved = client.backups.create(id, snapshot=snapshot.id)
    taken = client.backups.wait(saved.id, timeout=60)
    assert (taken.parent_id, taken.bytes_stored < 5 * MIB) == (stored, True)
    client.snapshots.delete(snapshot.id)
    client.snapshots.wait_deleted(snapshot.id, timeout=30)
    for restored, content in (
        (clone, moment),
        (made, moment),
        (volume(client, backup=taken.id), moment),
        (volume(client, backup=full.id), one.copy),
    ):
        assert holds(client, restored, content, tmp_path)
    fill(client, made)
    client.backups.delete(stored)
    assert list((lunr.root / "state" / "lacking").iterdir()) == []


def test_deleted_while_it_is_filled_nothing_is_left(
    lunr: Lunr, client: Client, stored: str
) -> None:
    id = restored(client, stored, fill="eager", fill_limit=1)
    export(client, id)
    assert id in lunr.fillers()
    client.exports.delete(id)
    client.exports.wait_deleted(id, timeout=30)
    client.volumes.delete(id)
    client.volumes.wait_deleted(id, timeout=30)
    assert lunr.fillers() == {}
    assert list((lunr.root / "state" / "fillings").iterdir()) == []
    assert list((lunr.root / "run" / "fillings").iterdir()) == []
    assert id not in Path("/proc/self/mountinfo").read_text()
    client.backups.delete(stored)


def test_a_damaged_object_costs_its_blocks_alone(
    lunr: Lunr, client: Client, stored: str, image: Path, tmp_path: Path
) -> None:
    damaged = max(
        (path for path in (lunr.root / "store").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    with damaged.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(bytes(100))
    id = restored(client, stored, fill="eager")
    wait_until(lambda: client.volumes.get(id).reason, what="it says why it does not go on")
    seen = client.volumes.get(id)
    assert seen.status == "RESTORING" and seen.usable
    assert seen.progress >= 99 and damaged.name in (seen.reason or "")
    client.volumes.update(id, fill="lazy")  # tried again, in vain
    assert client.volumes.get(id).reason is None
    wait_until(lambda: client.volumes.get(id).reason, what="it says so again")
    assert damaged.name in (client.volumes.get(id).reason or "")
    disk = Disk(export(client, id), tmp_path)
    assert not reads(disk, tmp_path / "copy"), "part of it is lost"
    # Written again, it is whole.
    disk.write_image(image, lambda _: None)
    client.volumes.update(id, fill="eager")
    assert client.volumes.wait(id, timeout=60).status == "ACTIVE"
    assert holds(client, id, image, tmp_path)
