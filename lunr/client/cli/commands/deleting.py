"""Deleting several things at once: each is tried, and each failure is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import click

from lunr.client.cli.output import clean, print_json
from lunr.client.cli.progress import follow
from lunr.common.errors import LunrError


class Things(Protocol):
    """What volumes, snapshots and backups have in common here."""

    def delete(self, id: str, /) -> Any:
        """Begin to delete one."""

    def wait_deleted(
        self,
        id: str,
        /,
        *,
        timeout: float | None = None,
        progress: Callable[[Any], object] | None = None,
    ) -> None:
        """Wait until it is gone."""


def run(
    things: Things,
    kind: str,
    wanted: Sequence[str],
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Delete the things with the ids `wanted`: begin with all, then wait for each.

    Prints a line for each, or a JSON list of ``{"id", "status"}``, with ``code`` and
    ``reason`` for those that failed. Ends the program with 1 if any failed.
    """
    results: dict[str, dict[str, str]] = {}
    for id in dict.fromkeys(wanted):
        results[id] = _attempt(id, "DELETING", lambda id=id: things.delete(id))  # type: ignore[misc]
    for id, result in results.items():
        if wait and result["status"] == "DELETING":
            results[id] = _attempt(
                id,
                "DELETED",
                lambda id=id: follow(  # type: ignore[misc]
                    f"{kind} {id}",
                    lambda progress: things.wait_deleted(id, timeout=timeout, progress=progress),
                    f"lunr {kind} show {id}",
                ),
            )
    if as_json:
        print_json(list(results.values()))
    for id, result in results.items():
        if result["status"] == "FAILED":
            click.echo(f"error: {clean(result['reason'])} ({clean(result['code'])})", err=True)
        elif not as_json:
            click.echo(f"{kind} {id} is {'gone' if wait else 'being deleted'}")
    if any(result["status"] == "FAILED" for result in results.values()):
        click.get_current_context().exit(1)


def _attempt(id: str, status: str, act: Callable[[], object]) -> dict[str, str]:
    try:
        act()
    except LunrError as error:
        return {"id": id, "status": "FAILED", "code": error.code, "reason": str(error)}
    return {"id": id, "status": status}
