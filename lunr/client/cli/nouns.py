"""How commands of nouns are made, and those that nouns have alike: list, show, delete, wait."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.deleting import delete_records
from lunr.client.cli.options import (
    ID,
    all_accounts_option,
    confirm,
    json_option,
    timeout_option,
    wait_options,
    yes_option,
)
from lunr.client.cli.output import print_list, print_record
from lunr.client.cli.progress import wait_ready
from lunr.client.client import Client
from lunr.client.records import Record

#: An option or argument of click, as a decorator.
Option = Callable[[Callable[..., Any]], Callable[..., Any]]
#: Gets a method that lists records; it takes the filters.
Lister = Callable[[Client], Callable[..., Iterable[Record]]]


def prints_record(command: Callable[..., Record]) -> Callable[..., None]:
    """Add ``--json`` to a command that returns a record, and print the record."""

    @json_option
    @click.pass_obj
    @functools.wraps(command)
    def print_result(context: ClientContext, /, as_json: bool, **given: Any) -> None:
        print_record(command(context, **given), as_json)

    return print_result


@dataclass(frozen=True)
class Noun:
    """A noun of the command line.

    Attributes:
        group: has the commands of the noun; its name is the noun.
        record: the class of the records; it names the columns of a list.
        collection: gets the client's collection of them.
    """

    group: click.Group
    record: type[Record]
    collection: Callable[[Client], Any]

    @property
    def name(self) -> str:
        """The noun."""
        return str(self.group.name)

    def add_list(
        self,
        help: str,
        lister: Lister,
        *options: Option,
        admin_lister: Lister | None = None,
        admin_columns: Sequence[str] = (),
    ) -> None:
        """Add ``list``.

        Args:
            lister: its method takes what the `options` give.
            admin_lister: as `lister`, for ``--all-accounts``; None: the command has no such
                option.
            admin_columns: the columns for ``--all-accounts``; by default `account_id` and those
                of the record.
        """

        @json_option
        @click.pass_obj
        def list_records(
            context: ClientContext, /, as_json: bool, all_accounts: bool = False, **filters: Any
        ) -> None:
            columns = self.record.columns
            if all_accounts:
                columns = tuple(admin_columns) or ("account_id", *columns)
            method = listers[all_accounts](context.client)
            print_list(method(**filters), columns, as_json)

        listers = {False: lister}
        if admin_lister is not None:
            listers[True] = admin_lister
            options = (*options, all_accounts_option)
        self._add("list", help, list_records, *options)

    def add_show(self, help: str, metavar: str | None = None) -> None:
        """Add ``show``."""

        def show(context: ClientContext, id: str) -> Record:
            record: Record = self.collection(context.client).get(id)
            return record

        self._add("show", help, prints_record(show), self._id_argument(metavar))

    def add_delete(self, help: str, question: str) -> None:
        """Add ``delete`` of several records by jobs.

        Args:
            question: to a person, with ``{ids}``.
        """

        @json_option
        @click.pass_obj
        def delete(
            context: ClientContext,
            ids: tuple[str, ...],
            yes: bool,
            wait: bool,
            timeout: float | None,
            as_json: bool,
        ) -> None:
            confirm(question.format(ids=", ".join(ids)), yes)
            collection = self.collection(context.client)
            delete_records(collection, self.name, ids, wait, timeout, as_json)

        metavar = f"{self.name.upper()}..."
        argument = click.argument("ids", metavar=metavar, type=ID, nargs=-1, required=True)
        self._add("delete", help, delete, argument, yes_option, wait_options)

    def add_wait(self, help: str) -> None:
        """Add ``wait``."""

        def wait(context: ClientContext, id: str, timeout: float | None) -> Record:
            record: Record = wait_ready(self.collection(context.client), self.name, id, timeout)
            return record

        self._add("wait", help, prints_record(wait), self._id_argument(), timeout_option)

    def _id_argument(self, metavar: str | None = None) -> Option:
        return click.argument("id", metavar=metavar or self.name.upper(), type=ID)

    def _add(self, name: str, help: str, action: Callable[..., None], *options: Option) -> None:
        command: Any = action
        for option in reversed(options):
            command = option(command)
        self.group.command(name, help=help)(command)
