"""Several that want the same at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lunr.backup.read.single_flight import SingleFlight
from tests.support.waiting import PATIENCE, wait_until


class Impatient:
    """Work that runs out of time when it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        raise TimeoutError("the store takes too long")


def test_who_has_more_patience_than_the_other_one_does_it_itself() -> None:
    """A guest's read has more than the fill in the background that began with the same chunk."""
    once: SingleFlight[str, str] = SingleFlight()
    impatient = Impatient()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(once.run, "chunk", impatient, time.monotonic())
        assert impatient.begun.wait(PATIENCE)
        second = threads.submit(once.run, "chunk", lambda: "here", time.monotonic() + PATIENCE)
        wait_until(second.running)
        impatient.go.set()
        with pytest.raises(TimeoutError):
            first.result(10)
        assert second.result(10) == "here"
    assert "chunk" not in once


def test_who_has_no_patience_left_waits_no_longer() -> None:
    once: SingleFlight[str, str] = SingleFlight()
    impatient = Impatient()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(once.run, "chunk", impatient, time.monotonic() + PATIENCE)
        assert impatient.begun.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            once.run("chunk", lambda: "never", time.monotonic() + 0.05)
        impatient.go.set()
        with pytest.raises(TimeoutError):
            first.result(10)
