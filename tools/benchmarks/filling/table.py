"""Rows of ratios, each with what it must reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Rich


class Table:
    """What was measured, printed row by row, and once more as a table in the end."""

    def __init__(self) -> None:
        self._table = Rich("work", "median", "compared with", "median", "ratio", "goal")
        self._table.box = box.SIMPLE
        self._console = Console(width=130, highlight=False)

    def time(
        self,
        name: str,
        ours: Sequence[float],
        other: str,
        theirs: Sequence[float],
        goal: float | None,
    ) -> None:
        """Seconds, and how many times as many as the others' they may be."""
        mine, yours = statistics.median(ours), statistics.median(theirs)
        self._add(name, _seconds(mine), other, _seconds(yours), mine / yours, goal, "<=")

    def rate(
        self,
        name: str,
        ours: Sequence[float],
        other: str,
        theirs: Sequence[float],
        goal: float | None,
        unit: str,
    ) -> None:
        """Something a second, and which part of the others' it must reach."""
        mine, yours = statistics.median(ours), statistics.median(theirs)
        shown = f"{mine:,.0f} {unit}", f"{yours:,.0f} {unit}"
        self._add(name, shown[0], other, shown[1], mine / yours, goal, ">=")

    def limit(self, name: str, ours: Sequence[float], most: float) -> float:
        """Seconds, at most so many; returns their median."""
        mine = statistics.median(ours)
        self._row(name, _seconds(mine), "", "", "", f"<= {_seconds(most)}{_miss(mine <= most)}")
        return mine

    def _add(
        self,
        name: str,
        mine: str,
        other: str,
        yours: str,
        ratio: float,
        goal: float | None,
        sign: str,
    ) -> None:
        told = ""
        if goal is not None:
            told = f"{sign} {goal}" + _miss(ratio <= goal if sign == "<=" else ratio >= goal)
        self._row(name, mine, other, yours, f"{ratio:.2f}", told)

    def _row(self, *cells: str) -> None:
        self._table.add_row(*cells)
        self._console.print(" | ".join(cells))

    def print(self) -> None:
        """All rows."""
        self._console.print(self._table)


def _miss(is_met: bool) -> str:
    return "" if is_met else "  missed"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.3f} ms"
