"""What the kernel says of a thin pool."""

from __future__ import annotations

import pytest

from lunr.storage.pools.thin import status as thin_status
from lunr.storage.pools.thin.status import Mode

#: Linux 6.1: two pools, of which one has a metadata snapshot.
TWO = """\
te--st-po--ol-tpool: 0 524288 thin-pool 1 113/1024 1024/4096 15 rw discard_passdown \
queue_if_no_space - 256
other: 0 786432 thin-pool 3 112/1024 16/6144 - rw discard_passdown error_if_no_space - 256
"""
FULL = (
    "p: 0 524288 thin-pool 2 130/1024 4096/4096 - out_of_data_space discard_passdown "
    "queue_if_no_space - 256 \n"
)
FAILED = "p: 0 393216 thin-pool Fail\n"
READ_ONLY = (
    "p: 0 524288 thin-pool 2 1024/1024 40/4096 - ro discard_passdown queue_if_no_space "
    "needs_check 256 \n"
)
MIB = 1 << 20


def test_a_pool_is_found_by_its_name() -> None:
    status = thin_status.parse(TWO, ("te--st-po--ol-tpool", "te--st-po--ol"))
    assert status is not None
    assert status.device == "te--st-po--ol-tpool"
    assert status.size == 256 * MIB
    assert status.free == 192 * MIB
    assert status.data == 0.25
    assert status.metadata == 113 / 1024
    assert status.held
    assert status.mode is Mode.WRITE
    assert not status.broken
    other = thin_status.parse(TWO, ("other",))
    assert other is not None
    assert not other.held
    assert thin_status.parse(TWO, ("te--st-po--ol_tdata",)) is None
    assert thin_status.parse("No devices found\n", ("other",)) is None


@pytest.mark.parametrize(
    ("text", "mode", "broken", "free"),
    [
        (FULL, Mode.OUT_OF_DATA, False, 0),
        (FAILED, Mode.FAILED, True, 0),
        (READ_ONLY, Mode.READ_ONLY, True, 253 * MIB + MIB // 2),
    ],
)
def test_bad_states(text: str, mode: Mode, broken: bool, free: int) -> None:
    status = thin_status.parse(text, ("p",))
    assert status is not None
    assert (status.mode, status.broken, status.free) == (mode, broken, free)


@pytest.mark.parametrize(
    ("text", "level", "says"),
    [
        (TWO, 0.85, ""),
        (TWO, 0.25, ""),
        (TWO, 0.2, "the thin pool g/p is 25% full: `lvextend -L +SIZE g/p`"),
        (FULL, 1.0, "is full and writes fail"),
        (FAILED, 1.0, "`vgchange -an g`"),
        (READ_ONLY, 1.0, "poolmetadatasize"),
        (TWO.replace("113/1024", "900/1024"), 0.85, "metadata of the thin pool g/p are 88% full"),
    ],
)
def test_why_a_pool_takes_no_more(text: str, level: float, says: str) -> None:
    status = thin_status.parse(text, ("p", "te--st-po--ol-tpool"))
    assert status is not None
    full = thin_status.why_full(status, level, "g/p")
    assert says in full
    assert bool(says) == bool(full)


@pytest.mark.parametrize("text", ["p: 0 8 linear", "p: 0 8 thin-pool 1 2/3", "p: nonsense"])
def test_another_target_is_no_pool(text: str) -> None:
    with pytest.raises(ValueError, match=r"p: "):
        thin_status.parse(text, ("p",))
