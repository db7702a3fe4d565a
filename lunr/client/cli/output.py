"""What the `lunr` command prints: tables for people, plain columns for pipes, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from lunr.client.records import Record
from lunr.common import units

#: Shown in place of a secret.
HIDDEN = "(hidden)"


def print_list(records: Iterable[Record], columns: Sequence[str], as_json: bool) -> None:
    """Print records: the fields `columns` as a table, or all fields as a JSON list."""
    if as_json:
        print_json([record.as_dict() for record in records])
        return
    rows = [
        [format_value(column, getattr(record, column)) for column in columns] for record in records
    ]
    _print_rows([_heading(column) for column in columns], rows)


def print_record(record: Record, as_json: bool, hide: Sequence[str] = ()) -> None:
    """Print one record, a field a line, or all as a JSON object.

    Args:
        hide: fields that are secret; JSON shows them all the same.
    """
    data = record.as_dict()
    if as_json:
        print_json(data)
        return
    rows = [
        [name, HIDDEN if name in hide and value is not None else format_value(name, value)]
        for name, value in data.items()
    ]
    _print_rows(("field", "value"), rows)


def print_gone(noun: str, id: str, as_json: bool) -> None:
    """Print that a record is deleted."""
    if as_json:
        print_json({"id": id, "status": "DELETED"})
    else:
        click.echo(f"{noun} {id} is gone")


def print_json(data: object) -> None:
    """Print `data` as JSON; what is not ASCII is escaped, so no terminal acts on it."""
    click.echo(json.dumps(data, indent=2))


def format_value(name: str, value: Any) -> str:
    """A field's value for a person.

    >>> format_value("size", 10), format_value("free_bytes", 1536), format_value("node_id", None)
    ('10 GiB', '1.5 KiB', '-')
    >>> format_value("metadata", {"os": "debian", "tier": "1"})
    'os=debian, tier=1'
    """
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        pairs = (f"{key}={'-' if item is None else item}" for key, item in value.items())
        return escape(", ".join(pairs)) or "-"
    if isinstance(value, list | tuple):
        return escape(", ".join(format_value("", item) for item in value)) or "-"
    if isinstance(value, int) and not isinstance(value, bool):
        if name == "size" or name.endswith("_size"):
            return f"{value} GiB"
        if name.endswith("_bytes") or name.startswith("bytes_"):
            return units.human(value)
        if name == "progress":
            return f"{value} %"
    if name.endswith(("_at", "_run", "last_seen")) and isinstance(value, str):
        return escape(value.partition(".")[0].removesuffix("Z").replace("T", " "))
    return escape(str(value))


def escape(text: str) -> str:
    """`text` with escapes for what a terminal would act on: users choose names.

    >>> print(escape("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _heading(column: str) -> str:
    for suffix in ("_at", "_bytes", "_status"):
        column = column.removesuffix(suffix)
    return column


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        _print_plain(columns, rows)
        return
    # Imported here: it costs what all the rest of the command does.
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    needed = 0
    for column, *cells in zip(columns, *rows, strict=True):
        words = [word for cell in (column, *cells) for word in cell.split(" ")]
        longest = max(map(cell_len, words))
        rigid = longest == max(map(cell_len, (column, *cells)))
        table.add_column(column, min_width=longest, no_wrap=rigid)
        needed += longest + 2  # the padding, and the box's blank between columns
    for row in rows:
        table.add_row(*map(Text, row))
    # Where not even the longest words fit side by side, the terminal breaks the lines: an id
    # that the table breaks, or cuts off, can't be copied.
    console.width = max(console.width, needed)
    console.print(table, crop=False)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
