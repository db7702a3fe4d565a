"""Unit tests start no process, unless they are marked ``@pytest.mark.starts("command")``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class _Watch:
    """Listens to the interpreter's audit events (PEP 578), which nothing gets around."""

    def __init__(self) -> None:
        self.on = False
        self.allowed: set[str] = set()
        self.started: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
            command = Path(os.fsdecode(args[0])).name
        elif event in ("os.system", "pty.spawn"):
            command = f"{event}: {args[0]!r}"
        elif event in ("os.fork", "os.forkpty"):
            command = "fork"
        else:
            return
        if command not in self.allowed:
            # Told again after the test: the code under test may swallow this one.
            self.started.append(command)
            raise AssertionError(f"a unit test may not start a process ({command})")


_watch = _Watch()
sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _starts_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    marks = request.node.iter_markers("starts")
    _watch.allowed = {command for mark in marks for command in mark.args}
    _watch.started = []
    _watch.on = True
    yield
    _watch.on = False
    if _watch.started:
        pytest.fail(f"a unit test may not start a process ({', '.join(_watch.started)})")
