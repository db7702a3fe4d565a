"""The reader of all untrusted JSON: of callers, stores, guests and machines.

``json.loads`` accepts documents that are no JSON (RFC 8259), and causes unexpected errors:
RecursionError for deep nesting, and later UnicodeEncodeError for half a surrogate pair.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: The default limit of a document, in bytes.
LONGEST = 16 << 20

#: A surrogate as an escape; two of them may be a character, a single one can't be encoded.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(document: bytes, longest: int = LONGEST) -> Any:
    """The value of a JSON document in UTF-8.

    Args:
        document: its bytes.
        longest: the most bytes that are accepted, which bounds the memory.

    Raises:
        ValueError: it is no JSON, too long, nested too deeply, has a name twice in an
            object, ``NaN`` or the like, or text that is no Unicode.
    """
    if len(document) > longest:
        raise ValueError(f"it has more than {longest} bytes")
    try:
        value = json.loads(
            document.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
        if _SURROGATE.search(document):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has half a character") from None
    return value


def load_object(document: bytes, longest: int = LONGEST) -> dict[str, Any]:
    """The object in a JSON document; see :func:`loads`.

    Raises:
        ValueError: as there, or the document is no object.
    """
    value = loads(document, longest)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - the document's fault
    return value


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number, and neither a boolean nor infinite."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
