"""A bar on the terminal while the `lunr` command waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from lunr.client.collection import J, JobRecordCollection, W, WaitableCollection
from lunr.client.records import Backup, Export, Group, Job, Snapshot, Volume
from lunr.client.resources import Volumes
from lunr.common import units

T = TypeVar("T")
WaitedRecord = Volume | Snapshot | Backup | Group | Export | Job


def show_progress(what: str, wait: Callable[[Callable[[Any], object]], T], again: str) -> T:
    """Run `wait` with a progress bar on standard error, if that is a terminal.

    Args:
        what: the subject of the wait, such as ``backup b1``.
        wait: takes a function to call with each record that it fetches.
        again: the command that goes on waiting; Ctrl-C prints it.
    """
    try:
        if not sys.stderr.isatty():
            return wait(lambda _: None)
        return _with_bar(what, wait)
    except KeyboardInterrupt:
        click.echo(f"\nThe work goes on. To wait for it: {again}", err=True)
        raise


def wait_ready(collection: WaitableCollection[W], noun: str, id: str, timeout: float | None) -> W:
    """Wait, with a bar, until a record of `collection` is ready, and return it."""
    return show_progress(
        f"{noun} {id}",
        lambda progress: collection.wait(id, timeout=timeout, progress=progress),
        f"lunr {noun} wait {id}",
    )


def wait_deleted(
    collection: JobRecordCollection[J], noun: str, id: str, timeout: float | None
) -> None:
    """Wait, with a bar, until a record of `collection` that is being deleted is gone."""
    show_progress(
        f"{noun} {id}",
        lambda progress: collection.wait_deleted(id, timeout=timeout, progress=progress),
        f"lunr {noun} show {id}",
    )


def wait_usable(volumes: Volumes, id: str, timeout: float | None) -> Volume:
    """Wait, with a bar, until a volume can be used, and return it; its fill may still run then."""
    return show_progress(
        f"volume {id}",
        lambda progress: volumes.wait_usable(id, timeout=timeout, progress=progress),
        f"lunr volume wait --usable {id}",
    )


def _with_bar(what: str, wait: Callable[[Callable[[Any], object]], T]) -> T:
    # Imported here: it costs what all the rest of the command does.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description} {task.fields[status]}", markup=False),
        BarColumn(30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, status="", amount="")

        def show(record: WaitedRecord) -> None:
            percent = getattr(record, "progress", None)
            bar.update(
                task,
                # Without a percentage the bar only moves.
                total=100 if percent or _is_restoring(record) else None,
                completed=percent or 0,
                status=record.status,
                amount=format_amount(record),
            )

        return wait(show)


def format_amount(record: WaitedRecord) -> str:
    """How much of a record's work is done, in percent and, where it has a size, in bytes.

    >>> format_amount(Backup(id="b", status="SAVING", size=10, progress=25))
    '25 %, 2.5 GiB of 10.0 GiB'
    >>> fill = {"progress": 25, "fill_rate": 100 << 20, "fill_remaining": 77}
    >>> format_amount(Volume(id="v", status="RESTORING", size=10, **fill))
    '25 %, 2.5 GiB of 10.0 GiB, 100.0 MiB/s, 0:01:17 left'
    >>> format_amount(Volume(id="v", status="RESTORING", size=10240, fill_rate=100 << 20))
    'below 1 % of 10.0 TiB, 100.0 MiB/s'
    """
    if isinstance(record, Export) or not (record.progress or _is_restoring(record)):
        return ""
    if isinstance(record, Job | Group) or not record.size:
        return f"{record.progress} %"
    size = record.size * units.GIB
    text = f"below 1 % of {units.human(size)}"
    if record.progress:
        done = units.human(size * record.progress / 100)
        text = f"{record.progress} %, {done} of {units.human(size)}"
    if isinstance(record, Volume) and record.fill_rate:
        text += f", {units.human(record.fill_rate)}/s"
        if record.fill_remaining is not None:
            text += f", {timedelta(seconds=record.fill_remaining)} left"
    return text


def _is_restoring(record: WaitedRecord) -> bool:
    """Whether the record is a volume whose fill runs now, even at 0 %."""
    return isinstance(record, Volume) and bool(record.fill_rate)
