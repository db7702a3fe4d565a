"""What a line of the log shows of strangers' words."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common import log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup(stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@given(st.text())
def test_a_terminal_obeys_nothing_and_further_lines_are_indented(message: str) -> None:
    shown = log.escape(message)
    assert all(line.startswith("    ") for line in shown.splitlines()[1:])
    assert not any(
        ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown if letter not in "\n\t"
    )
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_a_forged_record_is_indented(stream: io.StringIO) -> None:
    logging.warning("the answer is %s", "no\n2026-11-30T00:00:00.000Z INFO lunr.access [-] DELETE")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("the answer is no")
    assert second.startswith("    2026")


def test_a_forged_record_in_a_traceback_is_indented(stream: io.StringIO) -> None:
    try:
        raise ValueError("no\n2026-11-30T00:00:00.000Z INFO \x1b[2J")
    except ValueError:
        logging.exception("it failed")
    first, *others = stream.getvalue().splitlines()
    assert "it failed" in first
    assert len(others) > 3
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in stream.getvalue()


def test_a_long_message_is_cut(stream: io.StringIO) -> None:
    logging.warning("%s", "M" * 100_000)
    assert len(stream.getvalue()) < 10_000
    assert "91808 characters more" in stream.getvalue()


def test_json_escapes_by_itself(stream: io.StringIO) -> None:
    log.setup(style="json", stream=stream)
    logging.warning("a\n\x1b")
    assert json.loads(stream.getvalue())["message"] == "a\n\x1b"
    assert "\x1b" not in stream.getvalue()
