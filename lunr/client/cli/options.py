"""Options and types of values that several commands share."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from lunr.common import ids
from lunr.common.errors import InvalidField

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size in GiB: ``10``, ``10G``, ``1T`` (also ``GiB`` and ``TiB``)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of GiB."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,9})(?:([GT])(?:iB)?)?", value.strip(), re.IGNORECASE)
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a size in GiB such as 10, 10G or 1T", param, ctx)
        return int(match[1]) * (1024 if (match[2] or "G").upper() == "T" else 1)


class Id(click.ParamType[str]):
    """A well-formed id."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The id itself."""
        try:
            return ids.check(value)
        except InvalidField as error:
            self.fail(f"{value!r}: {error.fields['reason']}", param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """``key=value``."""

    name = "pair"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Key and value; the value may hold more ``=``."""
        key, equals, content = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, content


SIZE = Size()
ID = Id()
PAIR = Pair()

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask whether it is meant.")
name_option = click.option("--name", help="Up to 255 characters; need not be the only one.")
metadata_option = click.option(
    "-m",
    "--metadata",
    type=PAIR,
    metavar="KEY=VALUE",
    multiple=True,
    callback=lambda _ctx, _param, pairs: as_dict(pairs),
    help="A note to keep with it; can be given again.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait no longer than this; the work goes on.  [no limit]",
)
name_filter = click.option("--name", help="Only with this name.")
volume_filter = click.option("--volume", "volume_id", type=ID, help="Only of this volume.")
all_accounts_option = click.option(
    "--all-accounts", is_flag=True, help="Every account's (needs the role admin)."
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="At most so many, the newest.  [all]"
)


def wait_options(command: F) -> F:
    """Add ``--wait/--no-wait`` and ``--timeout`` to a command that starts work."""
    wait = click.option(
        "--wait/--no-wait", default=True, help="Return when the work is over, or at once.  [wait]"
    )
    return wait(timeout_option(command))


def fill_options(command: F) -> F:
    """Add ``--fill`` and ``--fill-limit``: how a volume from a backup is filled."""
    fill = click.option(
        "--fill",
        type=click.Choice(["eager", "lazy", "never"]),
        help="From its backup: at once, while nobody uses it, or only with what is read.  [eager]",
    )
    limit = click.option(
        "--fill-limit", type=click.IntRange(min=0), help="At most so many MiB a second; 0: all."
    )
    return fill(limit(command))


#: The words of the rules, and what each counts; ``--keep-daily`` is ``keep_daily`` of the API.
_RULES = {
    "last": "Keep the newest N.",
    **{
        word: f"Keep the newest of each of the last N {period} that have one."
        for word, period in {
            "hourly": "hours",
            "daily": "days",
            "weekly": "weeks",
            "monthly": "months",
            "yearly": "years",
        }.items()
    },
}


def rules_options(command: F) -> F:
    """Add ``--keep-last`` … ``--keep-yearly``; the command is given `rules`, None without any."""

    @functools.wraps(command)
    def with_rules(*args: Any, **given: Any) -> Any:
        rules = {f"keep_{word}": given.pop(f"keep_{word}") for word in _RULES}
        chosen = {rule: count for rule, count in rules.items() if count is not None}
        return command(*args, rules=chosen or None, **given)

    with_options: Any = with_rules
    count = click.IntRange(0, 10000)
    for word, help in reversed(_RULES.items()):
        option = click.option(f"--keep-{word}", type=count, metavar="N", help=help)
        with_options = option(with_options)
    return with_options  # type: ignore[no-any-return]


def as_dict(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any] | None:
    """The pairs as a dict; None without any.

    Raises:
        BadParameter: a key was given twice.
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise click.BadParameter(f"{key} was given twice")
        values[key] = value
    return values or None


def confirm(question: str, yes: bool) -> None:
    """Ask the question at the terminal, unless `yes` is set or standard input is no terminal.

    Raises:
        ClickException: the answer was no.
    """
    if yes or not _is_person():
        return
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was done")


def _is_person() -> bool:
    return sys.stdin.isatty()
