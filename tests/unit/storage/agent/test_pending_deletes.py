"""What is left to remove at the start is removed, whatever goes wrong with one of it."""

from __future__ import annotations

import threading

import pytest

from lunr.common import errors
from lunr.storage.agent import backoff
from lunr.storage.agent.pending_deletes import PendingDeletes
from lunr.storage.jobs.node_context import NodeContext


@pytest.mark.parametrize(
    "error", [ValueError("a defect"), errors.Unavailable(what="the disk", reason="it burns")]
)
def test_what_fails_is_tried_again_after_the_others(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(backoff, "_FIRST", 0.01)
    seen: list[str] = []

    class Failing(PendingDeletes):
        def _remove(self, subject: object) -> None:
            seen.append(str(subject))
            if seen == ["v1"]:
                raise error

    node: NodeContext = None  # type: ignore[assignment] - nothing is really removed
    removals = Failing(node, ["v1", "v2"], threading.Event())
    removals.run()
    assert seen == ["v1", "v2", "v1"]
    assert removals.progress() == {}
