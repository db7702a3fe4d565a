"""The files of the level "vm" are shared out among machines."""

from __future__ import annotations

from tools.testing.machines import grouped


def test_what_takes_longest_begins_first_and_alone() -> None:
    files = {"a": 10.0, "b": 70.0, "c": 20.0, "d": 35.0, "e": 5.0}
    assert grouped(files, 60, 2) == [["b"], ["d", "c", "a"], ["e"]]


def test_all_machines_have_something_to_do() -> None:
    assert grouped({"a": 10.0, "b": 10.0, "c": 10.0, "d": 10.0}, 60, 2) == [["a", "b"], ["c", "d"]]


def test_every_file_is_in_one_group() -> None:
    files = {str(number): float(number % 7) for number in range(40)}
    groups = grouped(files, 20, 3)
    assert sorted(file for group in groups for file in group) == sorted(files)
    assert grouped({}, 60, 2) == []
