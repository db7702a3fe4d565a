"""``lunr job``."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import ID, confirm, limit_option, yes_option
from lunr.client.records import Job


@click.group()
def job() -> None:
    """See, wait for and cancel the work that storage nodes do.

    \b
    Examples:
      lunr job list --status RUNNING
      lunr job wait JOB --timeout 600
      lunr job cancel JOB
    """


_noun = Noun(job, Job, lambda client: client.jobs)
_noun.add_list(
    "List jobs, newest first.",
    lambda client: client.jobs.list,
    click.option(
        "--status", help="Only in this state: QUEUED, RUNNING, DONE, FAILED or CANCELLED."
    ),
    click.option("--kind", help="Only of this kind, such as backup.save."),
    click.option("--volume", "volume_id", type=ID, help="Only on this volume."),
    limit_option,
    admin_lister=lambda client: client.admin.jobs,
)
_noun.add_show("Show a job, its result, and why it failed.")
_noun.add_wait("Wait until a job is done; an error if it failed or was cancelled.")


@job.command()
@click.argument("job_id", metavar="JOB", type=ID)
@yes_option
@prints_record
def cancel(context: ClientContext, job_id: str, yes: bool) -> Job:
    """Cancel a job. One that runs is told to stop, and ends a little later."""
    confirm(f"Cancel job {job_id}?", yes)
    jobs = context.client.jobs
    jobs.cancel(job_id)
    return jobs.get(job_id)
