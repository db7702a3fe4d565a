from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lunr.common.errors import Cancelled
from lunr.live import errors
from lunr.live.watch import Watch, is_set, uses_more


def test_the_check_that_speaks_first_says_why(tmp_path: Path) -> None:
    stop = threading.Event()
    with (tmp_path / "scratch").open("wb") as file:
        watch = Watch(is_set(stop))
        watch.add(uses_more([file], 1 << 20))
        with pytest.raises(errors.ScratchLimit, match=r"1\.0 MiB"), watch.watching():
            file.write(bytes([1]) * (2 << 20))
            file.flush()
            assert watch.cancel.wait(10)
            raise Cancelled


def test_who_is_stopped_before_it_begins_does_not_begin() -> None:
    stop = threading.Event()
    stop.set()
    watch = Watch(is_set(stop))
    with pytest.raises(Cancelled), watch.watching():
        assert watch.cancel.is_set()
        raise Cancelled


def test_what_is_not_limited_is_not(tmp_path: Path) -> None:
    with (tmp_path / "scratch").open("wb") as file:
        file.write(b"1" * 4096)
        file.flush()
        assert uses_more([file], 0)() is None
        assert uses_more([file], 1 << 20)() is None
