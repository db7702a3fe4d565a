"""Whatever is sent: a field is what it may be, or an error names it; nothing else happens."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.api import fields, params
from lunr.api.fields import Loose
from lunr.api.routing import ROUTES
from lunr.common import errors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
NAMES = sorted({name for route in ROUTES for name in route.fields})


@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON))
def test_any_json_is_parsed_or_refused(route: Any, body: dict[str, Any]) -> None:
    try:
        parsed = fields.parse(route.fields, body)
    except errors.BadRequest as error:
        assert error.status == 400 and str(error)
    else:
        assert set(parsed) <= set(route.fields)
        json.dumps(parsed).encode()
        for value in parsed.values():
            assert not (isinstance(value, str) and "\x00" in value)


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_form_is_parsed_or_refused(name: str, more: dict[str, str]) -> None:
    try:
        form = urlencode({name: "1", **more})
    except UnicodeEncodeError:
        return
    environ = {"REQUEST_METHOD": "GET", "QUERY_STRING": form}
    try:
        given = params.read(environ, flat=False)
    except errors.BadRequest:
        return
    assert all(isinstance(value, Loose | dict) for value in given.values())


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "", "a/b;c"]))
def test_any_body_is_an_object_or_refused(body: bytes, kind: str) -> None:
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": kind,
        "wsgi.input": io.BytesIO(body),
    }
    try:
        assert isinstance(params.read(environ, flat=False), dict)
    except errors.BadRequest as error:
        assert error.status == 400


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (fields.Integer(0, 10), "7", 7),
        (fields.Boolean(), "yes", True),
        (fields.Boolean(), "0", False),
        (fields.Items(fields.Id(), most=3), "a,b", ["a", "b"]),
        (fields.Items(fields.Id(), most=3), "", []),
        (fields.Address(), "::ffff", "::ffff"),
        (fields.Text(), "x", "x"),
    ],
)
def test_strings_of_a_form_stand_for_values(field: Any, text: str, value: object) -> None:
    parsed = field.parse("it", Loose(text))
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (fields.Integer(1, 10), "7"),
        (fields.Integer(1, 10), 0),
        (fields.Integer(1, 10), 11),
        (fields.Integer(1, 10), 1.0),
        (fields.Integer(0, 10), True),
        (fields.Integer(0, 10), Loose("٣")),
        (fields.Integer(0, 10), Loose("1e3")),
        (fields.Boolean(), "true"),
        (fields.Boolean(), 1),
        (fields.Text(), "a\x00"),
        (fields.Text(), "\ud800"),
        (fields.Text(3), "four"),
        (fields.Id(), "a/b"),
        (fields.Id(), "x" * 65),
        (fields.Id(), "é"),
        (fields.Id(), "a\n"),
        (fields.Mapped(), {"": "x"}),
        (fields.Mapped(), {'a"b': "x"}),
        (fields.Mapped(), {"a": 1}),
        (fields.Mapped(), {str(i): "x" for i in range(129)}),
        (fields.Initiator(), "ALL"),
        (fields.Initiator(), "iqn.2026-11.a:b c"),
        (fields.Address(), "0.0.0.0/0"),
        (fields.Address(), "ALL"),
        (fields.Address(), "fe80::1%eth0"),
        (fields.Anything(), {"a": "\udc00"}),
    ],
)
def test_what_it_may_not_be_is_refused(field: Any, value: object) -> None:
    with pytest.raises(errors.InvalidField, match="it"):
        field.parse("it", value)


def test_what_a_node_says_is_never_refused_for_its_looks() -> None:
    assert fields.Prose(5).parse("reason", "a\x00\nb\ud800cdef") == "a?\nb?"
