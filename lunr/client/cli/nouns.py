"""The commands that nouns have alike: list, show, delete and wait."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Noun:
    """A noun of the command line.

    Attributes:
        group: has the commands of the noun; its name is the noun.
        record: the class of the records; it says what a list shows.
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
        all_accounts: Lister | None = None,
        all_columns: Sequence[str] = (),
    ) -> None:
        """Add ``list``.

        Args:
            lister: its method takes what the `options` give.
            all_accounts: as `lister`, for ``--all-accounts``; None: there is no such option.
            all_columns: what a list of all accounts shows, if it is not just `account_id`
                and what the record says.
        """

        def list_records(
            context: ClientContext, /, as_json: bool, all_accounts: bool = False, **filters: Any
        ) -> None:
            columns = self.record.columns
            if all_accounts:
                columns = tuple(all_columns) or ("account_id", *columns)
            method = listers[all_accounts](context.client)
            print_list(method(**filters), columns, as_json)

        listers = {False: lister}
        if all_accounts is not None:
            listers[True] = all_accounts
            options = (*options, all_accounts_option)
        self._add("list", help, list_records, *options, json_option)

    def add_show(self, help: str, metavar: str | None = None) -> None:
        """Add ``show``."""

        def show(context: ClientContext, id: str, as_json: bool) -> None:
            print_record(self.collection(context.client).get(id), as_json)

        self._add("show", help, show, self._id_argument(metavar), json_option)

    def add_delete(self, help: str, question: str) -> None:
        """Add ``delete`` of several records by jobs.

        Args:
            question: to a person, with ``{ids}``.
        """

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
        self._add("delete", help, delete, argument, yes_option, wait_options, json_option)

    def add_wait(self, help: str) -> None:
        """Add ``wait``."""

        def wait(context: ClientContext, id: str, timeout: float | None, as_json: bool) -> None:
            collection = self.collection(context.client)
            print_record(wait_ready(collection, self.name, id, timeout), as_json)

        self._add("wait", help, wait, self._id_argument(), timeout_option, json_option)

    def _id_argument(self, metavar: str | None = None) -> Option:
        return click.argument("id", metavar=metavar or self.name.upper(), type=ID)

    def _add(self, name: str, help: str, action: Callable[..., None], *options: Option) -> None:
        command: Any = click.pass_obj(action)
        for option in reversed(options):
            command = option(command)
        self.group.command(name, help=help)(command)
