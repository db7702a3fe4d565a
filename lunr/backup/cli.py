"""``lunr engine``: the backup engine on the command line, without a service."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lunr.backup import errors
from lunr.backup.format.blocks import Compression
from lunr.backup.format.roots import Root
from lunr.backup.keys import derive, master_keys
from lunr.backup.open import open_repository
from lunr.backup.read.restore import restore as restore_backup
from lunr.backup.repository import collect as garbage
from lunr.backup.repository import pending_deletion
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import VerifyShard
from lunr.backup.repository.verify import verify as verify_backups
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, Progress
from lunr.backup.save.save import save as save_backup
from lunr.common import ids, log, units
from lunr.common.errors import LunrError
from lunr.common.help import HELP

logger = logging.getLogger(__name__)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LunrError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings=HELP)
def engine() -> None:
    """Save and restore files and block devices, without a lunr service.

    A store is a folder (files:/PATH) or a Swift container (swift:PREFIX, with
    ST_AUTH, ST_USER and ST_KEY or the OS_* variables in the environment).
    Every backup is complete by itself, yet stores only what its parent lacks.

    \b
      export LUNR_STORE=files:/srv/backups
      lunr engine save disk.img --id monday
      lunr engine save disk.img --id tuesday --parent latest
      lunr engine restore monday copy.img
      lunr engine delete monday
      lunr engine collect
    """


class _Id(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return ids.check(value)
        except LunrError as error:
            return self.fail(f"{value!r}: {error.fields['reason']}", param, ctx)


ID = _Id()


@dataclass(frozen=True)
class CliContext:
    """The context of every command: the repository, and the output."""

    repository: Repository
    as_json: bool
    jobs: int
    cancel: threading.Event

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A progress bar on a terminal, nothing elsewhere."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        # Imported here: it takes as long as the rest of the command.
        from rich import progress as bars
        from rich.console import Console

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def show(self, result: dict[str, Any], sentence: str) -> None:
        """Print `result` as one JSON object, or `sentence`."""
        click.echo(json.dumps(result) if self.as_json else sentence)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of the group, with the common options; it gets ``tools`` first."""

    @engine.command(function.__name__.strip("_"), help=function.__doc__)
    @click.option(
        "--store", envvar="LUNR_STORE", required=True, help="files:/PATH or swift:PREFIX."
    )
    @click.option(
        "--repository", type=ID, default="default", show_default=True, help="Whose backups."
    )
    @click.option(
        "--key-file",
        envvar="LUNR_KEY_FILE",
        type=click.Path(path_type=Path),
        help="The master key, 64 hexadecimal digits; mode 0600. One a line: the first writes, "
        "the others still read. [default: a public one]",
    )
    @click.option(
        "--concurrency",
        type=click.IntRange(1, 32),
        default=4,
        show_default=True,
        help="Requests to the store at once.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @functools.wraps(function)
    def command(
        store: str,
        repository: str,
        key_file: Path | None,
        concurrency: int,
        as_json: bool,
        **rest: Any,
    ) -> None:
        if not logging.getLogger().handlers:
            log.setup("WARNING")
        cancel = threading.Event()
        keys = master_keys.load(key_file)
        with open_repository(store, repository, keys, cancel=cancel) as opened:
            try:
                function(CliContext(opened, as_json, concurrency, cancel), **rest)
            finally:
                cancel.set()

    return command


@_command
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "backup_id", type=ID, required=True, help="The new backup's id.")
@click.option(
    "--parent",
    metavar="ID",
    help="Store only what this backup lacks; 'latest': the newest of the same volume.",
)
@click.option(
    "--like",
    metavar="ID",
    type=ID,
    multiple=True,
    help="A backup, of whatever volume, whose chunks need not be stored again; may be repeated.",
)
@click.option("--volume", type=ID, help="What it is a backup of. [default: SOURCE's name]")
@click.option(
    "--compression",
    type=click.Choice(["zstd", "none"]),
    default="zstd",
    show_default=True,
    help="Blocks that do not shrink are stored as they are.",
)
@click.option(
    "--encryption",
    type=click.Choice(list(derive.CIPHERS)),
    default="aes-256-gcm",
    show_default=True,
    help="Backups of either kind can be read.",
)
def save(
    tools: CliContext,
    source: Path,
    backup_id: str,
    parent: str | None,
    like: tuple[str, ...],
    volume: str | None,
    compression: str,
    encryption: str,
) -> None:
    """Save SOURCE, a file or block device that nobody writes to meanwhile."""
    volume = volume or _volume_of(source)
    parent_id = _latest(tools.repository, volume) if parent == "latest" else parent
    if parent_id is not None:
        ids.check(parent_id, "--parent")
    for named in (parent_id, *like):
        if named is not None:  # an option with a missing backup is an error
            tools.repository.load_root(named)
    backup = Backup(
        backup_id=backup_id,
        volume_id=volume,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        parent_id=parent_id,
        like=like,
    )
    tools.repository.keys = replace(tools.repository.keys, writes=derive.CIPHERS[encryption])
    with FileSource(source) as opened, tools.progress(f"save {backup_id}") as progress:
        root = save_backup(
            tools.repository,
            opened,
            backup,
            concurrency=tools.jobs,
            compression=Compression[compression.upper()],
            progress=progress,
            cancel=tools.cancel,
        )
    did = root.statistics
    result = {
        "backup_id": backup_id,
        "volume_id": volume,
        "parent_id": root.parent_id,
        "size_bytes": root.size_bytes,
        **asdict(did),
    }
    tools.show(
        result,
        f"Saved {backup_id}: read {units.human(did.bytes_read)}, stored "
        f"{units.human(did.bytes_stored)} in {did.objects_stored} objects, {did.seconds:.1f} s.",
    )


def _volume_of(source: Path) -> str:
    """A volume id from the source's name."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.resolve().name).strip("-_")[:64]
    return name or "volume"


def _roots(repository: Repository) -> list[Root]:
    """The readable roots, newest first; unreadable ones cause warnings."""
    roots = []
    for backup_id in repository.backup_ids():
        try:
            roots.append(repository.load_root(backup_id))
        except errors.BackupMissing:  # deleted meanwhile
            continue
        except (errors.CorruptObject, errors.WrongKey, errors.UnsupportedFormat) as error:
            click.echo(f"Warning: {error}", err=True)
    return sorted(roots, key=lambda root: root.created_at, reverse=True)


def _latest(repository: Repository, volume: str) -> str | None:
    matching = (root.backup_id for root in _roots(repository) if root.volume_id == volume)
    return next(matching, None)


@_command
@click.argument("backup_id", metavar="ID", type=ID)
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--force", is_flag=True, help="Overwrite TARGET even if it is mounted or open elsewhere."
)
def restore(tools: CliContext, backup_id: str, target: Path, force: bool) -> None:
    """Restore the backup ID to TARGET.

    TARGET is a block device or file, at least as large as the backup; it is
    overwritten. A file is made when there is none. A target that something
    else uses (a mount, another device, a process that writes) is refused.
    """
    with tools.progress(f"restore {backup_id}") as progress:
        done = restore_backup(
            tools.repository,
            backup_id,
            target,
            create=True,
            refuse_used=not force,
            concurrency=tools.jobs,
            progress=progress,
            cancel=tools.cancel,
        )
    tools.show(
        {"backup_id": backup_id, **asdict(done)},
        f"Restored {backup_id} to {target}: {units.human(done.bytes_read)}, {done.seconds:.1f} s.",
    )


@_command
@click.argument("backup_id", metavar="[ID]", type=ID, required=False)
@click.option(
    "--share",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    help="Read only one N-th of the objects, each day another one.",
)
def verify(tools: CliContext, backup_id: str | None, share: int) -> None:
    """Read and check every object of the backup ID, or of all backups.

    Bad objects go into quarantine: the next backup of a volume that still has the data stores
    it again. The exit code is 1 when a backup is damaged.
    """
    with tools.progress("verify") as progress:
        done = verify_backups(
            tools.repository,
            None if backup_id is None else [backup_id],
            share=None if share == 1 else VerifyShard(int(time.time() // 86400), share),
            concurrency=tools.jobs,
            progress=progress,
            cancel=tools.cancel,
        )
    bad = [f"{id}: {reason}" for id, reason in sorted(done.damaged.items())]
    tools.show(
        asdict(done),
        f"Looked at {done.backups} backups: read {done.objects} objects, "
        f"{units.human(done.bytes_read)}, in {done.seconds:.1f} s.",
    )
    if bad:
        raise errors.DamagedBackups(count=len(bad), reasons="\n".join(["", *bad]))


@_command
def list_(tools: CliContext) -> None:
    """List the backups, newest first."""
    roots = _roots(tools.repository)
    if tools.as_json:
        shown = [
            {
                "backup_id": root.backup_id,
                "volume_id": root.volume_id,
                "parent_id": root.parent_id,
                "size_bytes": root.size_bytes,
                "created_at": root.created_at,
                **asdict(root.statistics),
            }
            for root in roots
        ]
        click.echo(json.dumps({"backups": shown}))
        return
    rows = [("backup", "volume", "parent", "size", "stored", "created")]
    for root in roots:
        size, stored = root.size_bytes, root.statistics.bytes_stored
        names = root.backup_id, root.volume_id, root.parent_id or "-"
        rows.append((*names, units.human(size), units.human(stored), root.created_at))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@_command
@click.argument("backup_id", metavar="ID", type=ID)
def delete(tools: CliContext, backup_id: str) -> None:
    """Delete the backup ID. Others stay complete; `collect` gives the room back."""
    if not tools.repository.delete_root(backup_id):
        raise errors.BackupMissing(id=backup_id)
    tools.show({"deleted": backup_id}, f"Deleted {backup_id}.")


@_command
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    help="Seconds that garbage is left alone, at least twice what the store's listings may "
    "lag. [default: 0 for files:, 3600 for swift:]",
)
def collect(tools: CliContext, grace: float | None) -> None:
    """Delete what no backup needs.

    Safe while backups are saved. Objects that a running save may need are left
    for the next run. On stores whose listings lag, objects are deleted only after they
    were garbage for the time of grace: run it again after that.
    """
    wait = 2 * tools.repository.store.lag if grace is None else grace
    started = time.monotonic()
    deleted = freed = 0
    pending: list[str] = []
    collections = pending_deletion.listed(tools.repository)
    marked = garbage.collect(tools.repository, grace=wait, threads=tools.jobs, cancel=tools.cancel)
    if marked.collection is not None:
        collections.append(marked.collection)
    for collection in collections:
        try:
            swept = garbage.sweep(tools.repository, collection, (), wait, tools.jobs, tools.cancel)
        except errors.SavesRunning as error:
            pending.append(str(error))
            continue
        deleted += swept.deleted
        freed += swept.bytes_deleted
    result = {
        "condemned": marked.condemned,
        "deleted": deleted,
        "bytes_deleted": freed,
        "pending": pending,
        "seconds": round(time.monotonic() - started, 3),
    }
    tools.show(
        result,
        "\n".join([f"Deleted {deleted} objects, {units.human(freed)}.", *pending]),
    )


if __name__ == "__main__":
    engine(prog_name="lunr engine")
