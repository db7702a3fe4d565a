"""``lunr backup mount`` and ``umount``: backups as read-only files."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import click

from lunr.backup.keys import master_keys
from lunr.backup.lazy_image import fuse_protocol
from lunr.backup.lazy_image import mount as mounting
from lunr.backup.lazy_image.process import NAME, PATIENCE
from lunr.backup.lazy_image.readonly_image import Image
from lunr.backup.open import open_repository
from lunr.backup.read.backup_reader import Source
from lunr.common import ids, log, signals
from lunr.common.errors import LunrError
from lunr.common.help import HELP


@click.command(context_settings=HELP)
@click.argument("backup_id", metavar="ID")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--store", envvar="LUNR_STORE", required=True, help="files:/PATH or swift:PREFIX.")
@click.option("--repository", default="default", show_default=True, help="Whose backups.")
@click.option(
    "--key-file",
    envvar="LUNR_KEY_FILE",
    type=click.Path(path_type=Path),
    help="The master keys, one a line; mode 0600.  [a public one]",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=PATIENCE,
    show_default=True,
    help="Seconds a read waits for a store that does not answer.",
)
def mount(
    backup_id: str,
    folder: Path,
    store: str,
    repository: str,
    key_file: Path | None,
    patience: float,
) -> None:
    """Show the backup ID as the file FOLDER/volume, until Ctrl-C or `umount`.

    The file is of the size of its volume, read-only. What is read of it is fetched and
    checked then, and nothing else. It needs the store and the key, and no server of lunr.
    Only root can mount, and only the same user sees what is mounted.

    \b
    Examples:
      export LUNR_STORE=files:/srv/backups
      lunr backup mount monday /mnt &       # /mnt/volume
      losetup -rfP --show /mnt/volume       # its partitions: /dev/loop0p1 …
      mount -o ro,norecovery /dev/loop0p1 /media
      umount /media; losetup -d /dev/loop0
      lunr backup umount /mnt
    """
    if not logging.getLogger().handlers:
        log.setup("WARNING")
    try:
        _mount(ids.check(backup_id, "ID"), folder, store, repository, key_file, patience)
    except LunrError as error:
        raise click.ClickException(str(error)) from error


def _mount(
    backup_id: str,
    folder: Path,
    url: str,
    name: str,
    key_file: Path | None,
    patience: float,
) -> None:
    cancel, keys = threading.Event(), master_keys.load(key_file)
    with open_repository(url, name, keys, cancel=cancel) as repository:
        source = Source(repository, repository.load_root(backup_id))
        fd = mounting.mount(folder, fuse_protocol.MAX_IO, read_only=True)
        session = fuse_protocol.Session(fd, Image(source), NAME, patience)
        serving = threading.Thread(target=session.serve)
        serving.start()
        click.echo(f"{folder / NAME} is backup {backup_id}. Ctrl-C ends it.", err=True)
        signals.on_signal(lambda: _unmount(folder))
        while serving.is_alive():
            serving.join(1.0)
        cancel.set()
        source.close()


def _unmount(folder: Path) -> None:
    try:
        mounting.unmount(folder)
    except mounting.MountBusy as error:
        click.echo(str(error), err=True)


@click.command(context_settings=HELP)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--wait", default=10.0, show_default=True, help="Seconds to wait while it is in use.")
def umount(folder: Path, wait: float) -> None:
    """End what `mount` shows in FOLDER."""
    deadline = time.monotonic() + wait
    while True:
        try:
            was_mounted = mounting.unmount(folder)
        except mounting.MountBusy as error:
            if time.monotonic() > deadline:
                raise click.ClickException(str(error)) from error
            time.sleep(0.1)
        except LunrError as error:
            raise click.ClickException(str(error)) from error
        else:
            break
    if not was_mounted:
        raise click.ClickException(f"nothing is mounted at {folder}")
