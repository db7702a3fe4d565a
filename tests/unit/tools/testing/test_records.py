"""What pytest tells is read while it is written."""

from __future__ import annotations

from pathlib import Path

from tools.testing import records


def test_records_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "record"
    reader = records.Reader(path)
    assert list(reader.read()) == []
    writer = records.Writer(path)
    told = [
        records.Collected({"tests/unit/test_a.py": 2}),
        records.Failed("tests/unit/test_a.py::b", "call", "äöü\nassert 0"),
        records.Ended("tests/unit/test_a.py::b", "failed", 0.5, 100.0),
    ]
    for record in told:
        writer.write(record)
        assert list(reader.read()) == [record]
    assert list(reader.read()) == []
    writer.close()


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"
    line = b'{"kind": "Started", "id": "tests/unit/test_a.py::b"}\n'
    path.write_bytes(line + line[:20])
    reader = records.Reader(path)
    started = records.Started("tests/unit/test_a.py::b")
    assert list(reader.read()) == [started]
    path.write_bytes(line + line)
    assert list(reader.read()) == [started]


def test_a_level_lasts_from_its_first_test_to_its_last() -> None:
    result = records.Result()
    result.add(records.Ended("tests/unit/test_a.py::a", "passed", 10.0, 110.0))
    result.add(records.Ended("tests/unit/test_b.py::b", "passed", 30.0, 131.0))
    assert (result.seconds, result.wall, result.count) == (40.0, 31.0, 2)
