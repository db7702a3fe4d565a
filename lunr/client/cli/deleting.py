"""Deleting several records at once: each is tried, and each failure is reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from lunr.client.cli.output import escape, print_json
from lunr.client.cli.progress import wait_deleted
from lunr.client.collection import JobRecordCollection
from lunr.common.errors import LunrError


def delete_records(
    collection: JobRecordCollection[Any],
    noun: str,
    ids: Sequence[str],
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Begin to delete all records with these `ids`, then wait for each.

    Prints a line for each, or a JSON list of ``{"id", "status"}``, with ``code`` and
    ``reason`` for those that failed. Ends the program with 1 if any failed.
    """
    results = {
        id: _attempt(id, "DELETING", partial(collection.delete, id)) for id in dict.fromkeys(ids)
    }
    for id, result in results.items():
        if wait and result["status"] == "DELETING":
            wait_one = partial(wait_deleted, collection, noun, id, timeout)
            results[id] = _attempt(id, "DELETED", wait_one)
    if as_json:
        print_json(list(results.values()))
    for id, result in results.items():
        if result["status"] == "FAILED":
            click.echo(f"error: {escape(result['reason'])} ({escape(result['code'])})", err=True)
        elif not as_json:
            click.echo(f"{noun} {id} is {'gone' if wait else 'being deleted'}")
    if any(result["status"] == "FAILED" for result in results.values()):
        click.get_current_context().exit(1)


def _attempt(id: str, status: str, act: Callable[[], object]) -> dict[str, str]:
    try:
        act()
    except LunrError as error:
        return {"id": id, "status": "FAILED", "code": error.code, "reason": str(error)}
    return {"id": id, "status": status}
