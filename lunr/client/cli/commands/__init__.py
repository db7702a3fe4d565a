"""The commands of `lunr`, one file a noun."""

import click

from lunr.client.cli.commands.account import account
from lunr.client.cli.commands.backup import backup
from lunr.client.cli.commands.completion import completion
from lunr.client.cli.commands.export import export
from lunr.client.cli.commands.group import group
from lunr.client.cli.commands.job import job
from lunr.client.cli.commands.node import node
from lunr.client.cli.commands.schedule import schedule
from lunr.client.cli.commands.snapshot import snapshot
from lunr.client.cli.commands.types import type_
from lunr.client.cli.commands.volume import volume

ALL: tuple[click.Command, ...] = (
    volume,
    snapshot,
    backup,
    group,
    schedule,
    export,
    job,
    node,
    account,
    type_,
    completion,
)
