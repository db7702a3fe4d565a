"""Volumes of a whole lunr, as the API makes them and as an initiator sees them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from lunr.client import Client, errors
from lunr.client.records import Export
from lunr.common import units
from tests.support.thorough import THOROUGH
from tests.support.waiting import PATIENCE
from tools.demos.stage import DemoError, Disk, run_initiator

INITIATOR = "iqn.2026-11.io.lunr.test:initiator"

#: Bytes that are read of a hole, and the holes that are as small are read with what is around.
_SAMPLE = units.MIB


def answers(client: Client) -> bool:
    """Whether the API is up."""
    try:
        next(iter(client.volumes.list()), None)
    except errors.Unreachable:
        return False
    return True


def export(client: Client, volume_id: str) -> Export:
    """Export a volume to this machine."""
    client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
    return client.exports.wait(volume_id, timeout=PATIENCE)


def delete_export(client: Client, volume_id: str, *, force: bool = False) -> None:
    """Delete the export of a volume; return when it is gone."""
    client.exports.delete(volume_id, force=force)
    client.exports.wait_deleted(volume_id, timeout=PATIENCE)


def volume(client: Client, **source: str) -> str:
    """A new volume that can be used."""
    size = {} if source else {"size": 1}
    return client.volumes.wait(client.volumes.create(**size, **source).id, timeout=PATIENCE).id


def backup(client: Client, volume_id: str) -> str:
    """A new backup that can be used."""
    return client.backups.wait(client.backups.create(volume_id).id, timeout=PATIENCE).id


def verify(client: Client, backup_id: str) -> str:
    """Verify a backup; the status of the job."""
    job = client.backups.verify(backup_id)
    return client.jobs.wait(job.id, timeout=PATIENCE).status


def store(client: Client, image: Path, folder: Path) -> tuple[str, str]:
    """A new volume with the content of `image`, which nobody uses, and a backup of it."""
    id = volume(client)
    Disk(export(client, id), folder).write_image(image, lambda _: None)
    taken = backup(client, id)
    delete_export(client, id)
    return id, taken


def clear(client: Client, kept: Collection[str] = ()) -> None:
    """Delete all that the account has but what has the ids `kept`; return when it is gone."""
    volumes = [volume for volume in client.volumes.list() if volume.id not in kept]
    for one in volumes:
        if one.export_status:
            delete_export(client, one.id, force=True)
    for snapshot in list(client.snapshots.list()):
        client.snapshots.delete(snapshot.id)
        client.snapshots.wait_deleted(snapshot.id, timeout=PATIENCE)
    for one in volumes:
        client.volumes.delete(one.id)
    for one in volumes:
        client.volumes.wait_deleted(one.id, timeout=PATIENCE)
    backups = [backup.id for backup in client.backups.list() if backup.id not in kept]
    for id in backups:
        with contextlib.suppress(errors.NotFound):  # the test had deleted it, and did not wait
            client.backups.delete(id)
    for id in backups:
        client.backups.wait_deleted(id, timeout=PATIENCE)


def holds(
    client: Client, volume_id: str, image: Path, folder: Path, *, every_byte: bool = False
) -> bool:
    """Whether a volume reads, over iSCSI, as the image: see :func:`matches`."""
    disk = Disk(export(client, volume_id), folder)
    return matches(disk, image, folder, every_byte=every_byte)


def matches(
    disk: Disk, image: Path, folder: Path, *, every_byte: bool = False, seconds: float = PATIENCE
) -> bool:
    """Whether a disk reads as the image.

    Without `every_byte` all that is no hole in the image is read, and of each hole a part;
    `seconds` are for each.

    Raises:
        DemoError: it can't be read.
    """
    every = [(0, image.stat().st_size)]
    for offset, length in every if every_byte or THOROUGH else _windows(image):
        copy = folder / "window"
        _read(disk, offset, length, copy, seconds)
        if not _is_at(copy, image, offset):
            return False
        copy.unlink()
    return True


def can_be_read(disk: Disk, image: Path, folder: Path) -> bool:
    """Whether a disk can be read, as :func:`matches` does; what is read is as the image."""
    try:
        # An initiator hangs when a login is refused that it did not expect to be.
        assert matches(disk, image, folder, seconds=PATIENCE / 6)
    except DemoError:
        return False
    return True


def _read(disk: Disk, offset: int, length: int, copy: Path, seconds: float) -> None:
    options = {**disk.options, "offset": str(offset), "size": str(length)}
    image = ",".join(f"{name}={value}" for name, value in options.items())
    argv = ["timeout", str(seconds), "qemu-img", "convert", *disk.secret_arguments]
    run_initiator([*argv, "--image-opts", image, "-O", "raw", copy])


def _is_at(copy: Path, image: Path, offset: int) -> bool:
    with copy.open("rb") as one, image.open("rb") as other:
        other.seek(offset)
        while part := one.read(units.MIB):
            if part != other.read(len(part)):
                return False
    return True


def _windows(image: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is read: the data, and a part of each larger hole."""
    size = image.stat().st_size
    at = 0
    for start, end in [*_data(image), (size, size)]:
        if start - at > _SAMPLE:
            yield (at + start - _SAMPLE) // 2 // 4096 * 4096, _SAMPLE
        if end > start:
            yield start, end - start
        at = end


def _data(image: Path) -> list[tuple[int, int]]:
    """The first byte and the end of each range with data, with small holes between."""
    found: list[tuple[int, int]] = []
    with image.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            if found and start - found[-1][1] <= _SAMPLE:
                start = found.pop()[0]
            found.append((start, at))
    return found
