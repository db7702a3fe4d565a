"""What a snapshot lacks, as a file."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lunr.backup.lazy_image.missing_extents import GapsCorrupt, MissingExtents


@given(numbers=st.lists(st.integers(0, 1 << 60), unique=True).map(sorted))
def test_what_was_written_is_read(
    numbers: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "gaps"
    gaps = MissingExtents("b1", list(zip(numbers[::2], numbers[1::2], strict=False)))
    gaps.write(path)
    assert MissingExtents.read(path) == gaps
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_whatever_changed_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "gaps"
    MissingExtents("b1", [(0, 4096), (8192, 1 << 40)]).write(path)
    good = path.read_bytes()
    rng = random.Random(5)
    broken = [good[:length] for length in range(len(good) - 1)]
    for at in range(len(good) - 1):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        broken.append(bytes(changed))
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(GapsCorrupt, match=str(path)):
            MissingExtents.read(path)
