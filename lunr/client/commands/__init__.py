"""The commands of `lunr`, one file a noun."""

import click

from lunr.client.commands.account import account
from lunr.client.commands.backup import backup
from lunr.client.commands.completion import completion
from lunr.client.commands.export import export
from lunr.client.commands.group import group
from lunr.client.commands.job import job
from lunr.client.commands.node import node
from lunr.client.commands.schedule import schedule
from lunr.client.commands.snapshot import snapshot
from lunr.client.commands.types import type_
from lunr.client.commands.volume import volume

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
