"""Saves of a source that knows what has changed."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.unit.backup.support import Faulty, load_bytes, save_bytes
from tests.unit.backup.volume import CHUNKS, GEOMETRY, Volume


def test_only_what_changed_is_read() -> None:
    volume = Volume()
    volume.write(1, 2)
    volume.write(6, 14, 2)
    start = GEOMETRY.chunk + 2 * GEOMETRY.block
    end = 7 * GEOMETRY.chunk
    did = volume.save([(start + 5, start + 9), (end - 2 * GEOMETRY.block, end)])
    assert did.bytes_read == 3 * GEOMETRY.block


def test_nothing_is_asked_for_when_nothing_changed() -> None:
    volume = Volume()
    volume.write(0, 0)
    volume.save()
    asked: Counter[str] = Counter()
    volume.repo.store = Faulty(
        volume.store, lambda call, name: asked.update([f"{call} {name.partition('/')[0]}"])
    )
    did = save_bytes(volume.repo, bytes(volume.data), "same", "b1", geometry=GEOMETRY, changed=[])
    assert (did.statistics.bytes_read, did.statistics.bytes_stored) == (0, 0)
    assert asked["get segments"] == asked["get chunks"] == asked["get patches"] == 0
    assert load_bytes(volume.repo, "same") == volume.data


def test_too_wide_a_range_stores_no_more() -> None:
    volume = Volume()
    volume.write(3, 3)
    did = volume.save([(0, len(volume.data))])
    assert did.objects_stored == 2
    assert did.bytes_read == len(volume.data)


@pytest.mark.parametrize("size", [100, 512, 1023, 1024, 1090, 4608, 5000, CHUNKS * 1024 + 3000])
def test_a_volume_that_had_another_size(size: int) -> None:
    volume = Volume()
    volume.write(0, 1)
    volume.save()
    del volume.data[size:]
    volume.data.extend(os.urandom(size - len(volume.data)))
    volume.save([])
    volume.data += bytes(700)
    volume.save([])


def test_without_a_parent_all_is_read() -> None:
    volume = Volume()
    save_bytes(volume.repo, bytes(volume.data), "alone", None, geometry=GEOMETRY, changed=[])
    assert load_bytes(volume.repo, "alone") == volume.data
    save_bytes(volume.repo, bytes(volume.data), "orphan", "none", geometry=GEOMETRY, changed=[])
    assert load_bytes(volume.repo, "orphan") == volume.data


def test_changes_out_of_order_are_refused() -> None:
    volume = Volume()
    for changed in ([(5, 9), (0, 2)], [(4, 4)], [(0, 5), (3, 9)]):
        with pytest.raises(ValueError, match="out of order"):
            volume.save(changed)
        volume.count -= 1
