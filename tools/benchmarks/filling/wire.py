"""Restored volumes over iSCSI: through the whole service, and under a tgtd alone."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lunr.client import Client
from lunr.common import units
from lunr.storage.targets.base import Export
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd
from tests.system.storage import iscsi
from tools.benchmarks.filling.table import Table
from tools.demos.stage import Disk, Lunr, run

SIZES = {"1 GiB": 1, "100 GiB": 100, "10 TiB": 10 << 10}
_POOL_GIB = 12 << 10
#: The disk below need not hold what is sparse; oslo.config's own way to set an option.
_PROMISED = {"OS_NODE__OVERCOMMIT": "1000"}


def first_byte(folder: Path, env: dict[str, str], table: Table, rounds: int) -> None:
    """From POST to the first byte that an initiator has read, by size of the backup.

    What the same takes of an ordinary, empty volume is beside it. All times have the
    start of an initiator (qemu-io) and its login in them.
    """
    options = ("--store", "swift:up", "--pool-gib", str(_POOL_GIB))
    lunr = Lunr(folder / "up", *options, env={**env, **_PROMISED})
    try:
        lunr.wait_until_up()
        client = lunr.client()
        backups = {name: _backed_up(client, size, folder) for name, size in SIZES.items()}
        taken: dict[str, list[float]] = {name: [] for name in SIZES}
        usable: dict[str, list[float]] = {name: [] for name in SIZES}
        empty: list[float] = []
        for _ in range(rounds):
            for name, size in SIZES.items():
                whole, there = _until_read(client, folder, size, backup=backups[name])
                taken[name].append(whole)
                usable[name].append(there)
            empty.append(_until_read(client, folder, 1)[0])
        medians = [
            table.limit(f"POST to first byte over iSCSI, {name}", figures, 1.0)
            for name, figures in taken.items()
        ]
        for name, figures in usable.items():
            table.limit(f"… of these, POST to usable, {name}", figures, 1.0)
        table.time("the longest of the three", [max(medians)], "the shortest", [min(medians)], 1.5)
        table.time("POST to first byte, 1 GiB", taken["1 GiB"], "an empty volume", empty, None)
    finally:
        lunr.stop()


def _backed_up(client: Client, size: int, folder: Path) -> str:
    """A backup of a volume of so many GiB with 4 MiB of data in its middle."""
    id = client.volumes.wait(client.volumes.create(size=size).id, timeout=60).id
    client.exports.create(id, initiator=iscsi.INITIATOR, ip="127.0.0.1")
    disk = Disk(client.exports.wait(id, timeout=30), folder)
    argv = ["qemu-io", *disk.secret_arguments, "--image-opts", disk.image]
    run([*argv, "-c", f"write -P 7 {_middle(size)} 4M", "-c", "flush"])
    taken = client.backups.wait(client.backups.create(id).id, timeout=300).id
    _delete(client, id)
    return taken


def _until_read(client: Client, folder: Path, size: int, **source: Any) -> tuple[float, float]:
    """Seconds from POST to the first bytes read, and to when it could be used."""
    begun = time.monotonic()
    source = {**source, "fill": "never"} if source else {}
    id = client.volumes.create(size=size, **source).id
    while True:
        seen = client.volumes.get(id)
        if seen.usable or seen.status == "ACTIVE":
            break
        time.sleep(0.005)
    there = time.monotonic() - begun
    client.exports.create(id, initiator=iscsi.INITIATOR, ip="127.0.0.1")
    while (export := client.exports.get(id)).status != "ATTACHED":
        time.sleep(0.005)
    disk = Disk(export, folder)
    pattern = 7 if source else 0
    argv = ["qemu-io", *disk.secret_arguments, "--image-opts", disk.image]
    said = run([*argv, "-c", f"read -P {pattern} {_middle(size)} 4k"])
    taken = time.monotonic() - begun
    if "verification failed" in said or "read 4096/4096" not in said:
        raise SystemExit(f"it was not read as it was written: {said}")
    _delete(client, id)
    return taken, there


def _delete(client: Client, id: str) -> None:
    client.exports.delete(id)
    client.exports.wait_deleted(id, timeout=30)
    client.volumes.delete(id)
    client.volumes.wait_deleted(id, timeout=60)


def _middle(size: int) -> int:
    return size * units.GIB // 2


# --- under tgtd alone ----------------------------------------------------------------


class Exported:
    """Files that a tgtd has open.

    Attributes:
        urls: where initiators find them, by name.
    """

    def __init__(self, target: TgtTarget) -> None:
        self.urls: dict[str, str] = {}
        self._target = target
        self._exports: dict[str, Export] = {}

    def add(self, export: Export, portal: str) -> None:
        """Have one opened."""
        self._target.ensure(export)
        self._exports[export.volume_id] = export
        self.urls[export.volume_id] = iscsi.url(portal, export)

    def move(self, name: str, path: Path) -> None:
        """Have another file opened instead, as a node does with a volume that is full."""
        self._target.reopen(replace(self._exports[name], path=path))


@contextlib.contextmanager
def exported(folder: Path, files: dict[str, Path]) -> Iterator[Exported]:
    """The files, which a tgtd opens now."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        tgtd = Tgtd(Path(place))
        tgtd.start()
        try:
            made = Exported(TgtTarget(tgtd.socket, Path(place)))
            for name, path in files.items():
                export = Export(
                    volume_id=name,
                    path=path,
                    iqn=f"iqn.2026-11.io.lunr:{name}",
                    lun=1,
                    username=name,
                    password="secretsecret",
                    initiator=iscsi.INITIATOR,
                    ip=None,
                    serial=name,
                )
                made.add(export, tgtd.portal)
            yield made
        finally:
            tgtd.kill()


def rate(url: str, count: int, size: int, options: Sequence[str] = ()) -> float:
    """Requests a second of `size` bytes, 8 at a time, one after the other over the disk."""
    options = ("-c", str(count), "-d", "8", "-s", str(size), *options)
    argv = ["qemu-img", "bench", "-t", "none", *options, "--image-opts", image(url)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    if found is None:
        raise SystemExit(f"qemu-img bench said: {done.stdout}")
    return count / float(found[1])


def image(url: str) -> str:
    """A disk as qemu's tools take it after ``--image-opts``."""
    found = re.fullmatch(r"iscsi://(\w+)%(\w+)@([\d.:]+)/(.+)/(\d+)", url)
    assert found is not None
    user, password, portal, iqn, lun = found.groups()
    return (
        "driver=raw,file.driver=iscsi,file.transport=tcp,"
        f"file.portal={portal},file.target={iqn},file.lun={lun},file.user={user},"
        f"file.password={password},file.initiator-name={iscsi.INITIATOR}"
    )
