from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lunr.common.errors import Cancelled
from lunr.live import errors
from lunr.live.backup.abort_checks import (
    AbortChecks,
    is_set,
    reserved,
    space_left_below,
    space_used_above,
)
from tests.support.waiting import PATIENCE


def test_the_check_that_speaks_first_says_why(tmp_path: Path) -> None:
    stop = threading.Event()
    with (tmp_path / "scratch").open("wb") as file:
        watch = AbortChecks(is_set(stop))
        watch.add(space_used_above([file], 1 << 20))
        with pytest.raises(errors.ScratchLimit, match=r"1\.0 MiB"), watch.watching():
            file.write(bytes([1]) * (2 << 20))
            file.flush()
            assert watch.cancel.wait(PATIENCE)
            raise Cancelled


def test_who_is_stopped_before_it_begins_does_not_begin() -> None:
    stop = threading.Event()
    stop.set()
    watch = AbortChecks(is_set(stop))
    with pytest.raises(Cancelled), watch.watching():
        assert watch.cancel.is_set()
        raise Cancelled


def test_what_is_not_limited_is_not(tmp_path: Path) -> None:
    with (tmp_path / "scratch").open("wb") as file:
        file.write(b"1" * 4096)
        file.flush()
        assert space_used_above([file], 0)() is None
        assert space_used_above([file], 1 << 20)() is None


@pytest.mark.parametrize(
    ("size", "free", "reserve", "is_enough"),
    [
        (100 << 30, 5 << 30, None, True),
        (100 << 30, (5 << 30) - 4096, None, False),
        (10 << 30, 1 << 30, None, True),  # a twentieth would be less
        (10 << 30, (1 << 30) - 4096, None, False),
        (10 << 30, 8192, 8192, True),
        (10 << 30, 4096, 8192, False),
        (10 << 30, 0, 0, True),
    ],
)
def test_what_must_stay_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    free: int,
    reserve: int | None,
    is_enough: bool,
) -> None:
    found = os.statvfs_result((512, 4096, size >> 12, free >> 12, free >> 12, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: found)
    with (tmp_path / "scratch").open("wb") as file:
        error = space_left_below([file], reserve)()
    assert (error is None) == is_enough
    assert error is None or isinstance(error, errors.ScratchReserve)


def test_a_twentieth_is_reserved() -> None:
    assert reserved(1 << 40) == (1 << 40) // 20
    assert reserved(1 << 20) == 1 << 30
