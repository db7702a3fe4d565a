"""The bandwidth limit, in a time that goes by only when somebody waits."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.backup.stores.limited import Limited
from lunr.backup.stores.memory import MemoryStore
from lunr.common.errors import Cancelled
from lunr.common.rate import TokenBucket

RATE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


class Slow(MemoryStore):
    """Each request takes `request` seconds."""

    def __init__(self, clock: Clock, request: float) -> None:
        super().__init__()
        self.clock = clock
        self.request = request

    def put(self, name, *buffers, **options):  # type: ignore[no-untyped-def]
        self.clock.now += self.request
        super().put(name, *buffers, **options)

    def get(self, name, offset=0, length=None):  # type: ignore[no-untyped-def]
        self.clock.now += self.request
        return super().get(name, offset, length)


def limited(request: float = 0.0) -> tuple[Clock, Limited]:
    clock = Clock()
    return clock, Limited(Slow(clock, request), TokenBucket(RATE, 1.0, clock), clock.wait)


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=50),
    st.floats(0, 0.5),
    st.sampled_from(["chunks", "patches", "segments"]),
)
def test_it_is_kept_and_used_up(sizes: list[int], request: float, kind: str) -> None:
    clock, store = limited(request)
    for count, size in enumerate(sizes):
        start = clock.now
        store.put(f"{kind}/{count}", bytes(size))
        assert clock.now >= start
    spent = clock.now - 50.0
    must = sum(sizes) / RATE
    assert must <= spent + 1e-6  # never faster
    assert spent <= must + request * len(sizes) + 1e-6
    for count, size in enumerate(sizes):
        assert len(store.get(f"{kind}/{count}")) == size
    # What was not used counts for a second at most.
    assert 2 * must <= clock.now - 50.0 + 1.0 + 1e-6


def test_slow_requests_do_not_make_it_slower_than_the_limit() -> None:
    clock, store = limited(request=0.4)
    for count in range(100):
        store.put(f"chunks/{count}", bytes(1000))
    assert 100 <= clock.now - 50.0 < 101


def test_what_was_not_used_for_long_is_lost() -> None:
    clock, store = limited()
    clock.now += 1000.0
    start = clock.now
    for count in range(10):
        store.put(f"chunks/{count}", bytes(1000))
    assert clock.now - start == pytest.approx(9.0)


def test_a_part_counts_as_a_part() -> None:
    clock, store = limited()
    store.put("roots/b", bytes(100_000))
    store.put("sessions/s", bytes(100_000))
    assert clock.now == 50.0
    store.put("chunks/c", bytes(10_000))
    assert clock.now == pytest.approx(60.0)
    store.get("chunks/c", 1000, 500)
    assert clock.now == pytest.approx(60.5)


def test_cancel_ends_the_waiting() -> None:
    cancel = threading.Event()
    store = Limited(MemoryStore(), TokenBucket(1), cancel.wait)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        store.put("chunks/c", bytes(1 << 20))
