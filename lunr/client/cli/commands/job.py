"""``lunr job``."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.context import Session
from lunr.client.cli.options import (
    ID,
    all_accounts_option,
    confirm,
    json_option,
    limit_option,
    timeout_option,
    yes_option,
)
from lunr.client.cli.output import print_list, print_record
from lunr.client.cli.progress import finished

_COLUMNS: tuple[str, ...] = (
    "id",
    "kind",
    "subject_id",
    "status",
    "progress",
    "node_id",
    "created_at",
    "reason",
)


@click.group()
def job() -> None:
    """See, wait for and cancel the work that storage nodes do.

    \b
    Examples:
      lunr job list --status RUNNING
      lunr job wait JOB --timeout 600
      lunr job cancel JOB
    """


@job.command("list")
@click.option("--status", help="Only in this state: QUEUED, RUNNING, DONE, FAILED or CANCELLED.")
@click.option("--kind", help="Only of this kind, such as backup.save.")
@click.option("--volume", "volume_id", type=ID, help="Only on this volume.")
@limit_option
@all_accounts_option
@json_option
@click.pass_obj
def list_(session: Session, /, all_accounts: bool, as_json: bool, **filters: Any) -> None:
    """List jobs, newest first."""
    client = session.client
    if all_accounts:
        found, columns = client.admin.jobs(**filters), ("account_id", *_COLUMNS)
    else:
        found, columns = client.jobs.list(**filters), _COLUMNS
    print_list(found, columns, as_json)


@job.command()
@click.argument("job_id", metavar="JOB", type=ID)
@json_option
@click.pass_obj
def show(session: Session, job_id: str, as_json: bool) -> None:
    """Show a job, its result, and why it failed."""
    print_record(session.client.jobs.get(job_id), as_json)


@job.command()
@click.argument("job_id", metavar="JOB", type=ID)
@yes_option
@json_option
@click.pass_obj
def cancel(session: Session, job_id: str, yes: bool, as_json: bool) -> None:
    """Cancel a job. One that runs is told to stop, and ends a little later."""
    confirm(f"Cancel job {job_id}?", yes)
    jobs = session.client.jobs
    jobs.cancel(job_id)
    print_record(jobs.get(job_id), as_json)


@job.command("wait")
@click.argument("job_id", metavar="JOB", type=ID)
@timeout_option
@json_option
@click.pass_obj
def wait_(session: Session, job_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a job is done; an error if it failed or was cancelled."""
    print_record(finished(session.client.jobs, "job", job_id, timeout), as_json)
