"""What files with tests took in earlier runs, to know what to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.testing import records

#: Seconds that a file may take of which nothing is known, by its level: in doubt it goes first.
GUESSES = {"unit": 1.0, "functional": 8.0, "system": 20.0, "crash": 40.0, "vm": 20.0}


def read_durations(path: Path) -> dict[str, float]:
    """Seconds by file, as earlier runs had them."""
    if not path.exists():
        return {}
    found: dict[str, float] = json.loads(path.read_text())
    return found


def seconds_of(file: str, known: Mapping[str, float]) -> float:
    """What `file` takes, or may take."""
    return known.get(file, GUESSES.get(records.level_of(file), 10.0))


def remember(path: Path, results: Iterable[records.Result]) -> None:
    """Keep for the next run what each file took."""
    new: dict[str, float] = {}
    for result in results:
        for id, seconds in result.tests.items():
            file = records.file_of(id)
            new[file] = new.get(file, 0.0) + seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    rounded = {file: round(seconds, 2) for file, seconds in new.items()}
    fresh.write_text(json.dumps(read_durations(path) | rounded, indent=1))
    fresh.replace(path)
