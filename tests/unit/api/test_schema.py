"""Whatever is sent: a field is what it may be, or an error names it; nothing else happens."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.api import request_params, schema
from lunr.api.routing import ROUTES
from lunr.api.schema import FormValue
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
        parsed = schema.parse(route.fields, body)
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
        given = request_params.read(environ, flat=False)
    except errors.BadRequest:
        return
    assert all(isinstance(value, FormValue | dict) for value in given.values())


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "", "a/b;c"]))
def test_any_body_is_an_object_or_refused(body: bytes, kind: str) -> None:
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": kind,
        "wsgi.input": io.BytesIO(body),
    }
    try:
        assert isinstance(request_params.read(environ, flat=False), dict)
    except errors.BadRequest as error:
        assert error.status == 400


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (schema.Integer(0, 10), "7", 7),
        (schema.Boolean(), "yes", True),
        (schema.Boolean(), "0", False),
        (schema.Array(schema.Id(), most=3), "a,b", ["a", "b"]),
        (schema.Array(schema.Id(), most=3), "", []),
        (schema.Address(), "::ffff", "::ffff"),
        (schema.String(), "x", "x"),
    ],
)
def test_strings_of_a_form_stand_for_values(field: Any, text: str, value: object) -> None:
    parsed = field.parse("it", FormValue(text))
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (schema.Integer(1, 10), "7"),
        (schema.Integer(1, 10), 0),
        (schema.Integer(1, 10), 11),
        (schema.Integer(1, 10), 1.0),
        (schema.Integer(0, 10), True),
        (schema.Integer(0, 10), FormValue("٣")),
        (schema.Integer(0, 10), FormValue("1e3")),
        (schema.Boolean(), "true"),
        (schema.Boolean(), 1),
        (schema.String(), "a\x00"),
        (schema.String(), "\ud800"),
        (schema.String(3), "four"),
        (schema.Id(), "a/b"),
        (schema.Id(), "x" * 65),
        (schema.Id(), "é"),
        (schema.Id(), "a\n"),
        (schema.Object(), {"": "x"}),
        (schema.Object(), {'a"b': "x"}),
        (schema.Object(), {"a": 1}),
        (schema.Object(), {str(i): "x" for i in range(129)}),
        (schema.Initiator(), "ALL"),
        (schema.Initiator(), "iqn.2026-11.a:b c"),
        (schema.Address(), "0.0.0.0/0"),
        (schema.Address(), "ALL"),
        (schema.Address(), "fe80::1%eth0"),
        (schema.Json(), {"a": "\udc00"}),
    ],
)
def test_what_it_may_not_be_is_refused(field: Any, value: object) -> None:
    with pytest.raises(errors.InvalidField, match="it"):
        field.parse("it", value)


def test_what_a_node_says_is_never_refused_for_its_looks() -> None:
    assert schema.Text(5).parse("reason", "a\x00\nb\ud800cdef") == "a?\nb?"
