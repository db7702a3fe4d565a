"""Agents that look more often than an operator's, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lunr.storage.agent import agent, job_runner


@pytest.fixture(autouse=True)
def _short_intervals() -> Iterator[None]:
    # Not the test's own patch, which is to end before the fixtures that the test names.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "WATCH_INTERVAL", 0.1)
        patch.setattr(job_runner, "_REPORT_INTERVAL", 0.2)
        yield
