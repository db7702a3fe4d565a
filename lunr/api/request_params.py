"""What a request carries: the query, and a body that is JSON or a form."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from lunr.api.schema import FormValue
from lunr.common import errors, strict_json

#: Names of fields that are objects: ``metadata.color=red`` is ``{"metadata": {"color": "red"}}``.
_DOTTED = ("metadata.", "quotas.", "retention.")
_MAX_FIELDS = 1000

#: name -> value, as :mod:`lunr.api.schema` takes them
Given = dict[str, Any]


def read(environ: dict[str, Any], flat: bool) -> Given:
    """All parameters of the request.

    Args:
        environ: the WSGI environment; its body is bounded already.
        flat: leave names with dots as they are (a list's filters).

    Raises:
        errors.BadRequest: the body is not what it says it is, or a name is there twice.
    """
    given = _strings(environ.get("QUERY_STRING", ""), "query", flat)
    if environ["REQUEST_METHOD"] == "GET":
        return given
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if not body.strip():
        return given
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded" and body.lstrip()[:1] != b"{":
        more = _strings(_decode(body), "form", flat)
    elif kind in ("", "application/json", "application/x-www-form-urlencoded"):
        more = _object(body)
    else:
        raise errors.BadRequest(
            reason="a body is application/json or application/x-www-form-urlencoded"
        )
    if twice := given.keys() & more.keys():
        raise errors.BadRequest(reason=f"{sorted(twice)[0][:64]!a} is in the query and in the body")
    return given | more


def _strings(text: str, where: str, flat: bool) -> Given:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise errors.BadRequest(reason=f"the {where} is not well-formed") from error
    given: Given = {}
    for name, value in pairs:
        outer, key = _split(name) if not flat else ("", name)
        into = given.setdefault(outer, {}) if outer else given
        if not isinstance(into, dict) or key in into:
            raise errors.BadRequest(reason=f"{name[:64]!a} is in the {where} twice")
        into[key] = FormValue(value)
    return given


def _split(name: str) -> tuple[str, str]:
    for prefix in _DOTTED:
        if name.startswith(prefix):
            return prefix[:-1], name.removeprefix(prefix)
    return "", name


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise errors.BadRequest(reason="the body is not UTF-8") from error


def _object(body: bytes) -> dict[str, Any]:
    _decode(body)
    try:
        return strict_json.load_object(body, longest=len(body))  # a middleware bounds it
    except ValueError as error:
        raise errors.BadRequest(reason=f"the body is not JSON: {str(error)[:200]}") from error
