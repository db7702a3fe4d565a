"""JSON of strangers: what is none is refused, and nothing else is ever raised."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half a surrogate pair is a str of Python and no text.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_is_json_is_read(value: object, ascii: bool) -> None:
    try:
        document = json.dumps(value, ensure_ascii=ascii).encode()
    except UnicodeEncodeError:  # a name in it is no text
        return
    assert strict_json.loads(document) == value


@given(st.binary())
def test_other_bytes_are_refused_and_nothing_else(document: bytes) -> None:
    with contextlib.suppress(ValueError):
        strict_json.loads(document)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'{"return":' * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"NaN", "no number|not a number"),
        (b'{"a": -Infinity}', "not a number"),
        (b'"\\ud800"', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"1" * 5000, "digits|limit"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
    ],
)
def test_nonsense_is_refused(document: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strict_json.loads(document)


def test_two_surrogates_are_a_character() -> None:
    assert strict_json.loads(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_what_is_too_long_is_not_read() -> None:
    assert strict_json.loads(b'"' + b"x" * 98 + b'"', longest=100) == "x" * 98
    with pytest.raises(ValueError, match="100 bytes"):
        strict_json.loads(b'"' + b"x" * 99 + b'"', longest=100)


@pytest.mark.parametrize("document", [b"[]", b"1", b"null", b'"{}"'])
def test_an_object_is_asked_for(document: bytes) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        strict_json.load_object(document)


@pytest.mark.parametrize("value", [True, None, "1", float("inf"), []])
def test_what_is_no_number(value: object) -> None:
    assert not strict_json.is_number(value)
    assert strict_json.is_number(1)
    assert strict_json.is_number(1.5)
