"""Ids: their creation, and their check before they become part of a path, name or command."""

from __future__ import annotations

import re
import uuid

from lunr.common import errors

#: The ids that a caller may choose for volumes, backups, accounts and nodes. They
#: are safe as a file name, an LV name, an object name and the tail of an IQN.
PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def new() -> str:
    """A new random id (UUID 4, RFC 9562)."""
    return str(uuid.uuid4())


def is_valid(value: object) -> bool:
    """Whether `value` is a string that `check` would return."""
    return isinstance(value, str) and PATTERN.fullmatch(value) is not None


def check(value: object, field: str = "id") -> str:
    """Return `value` if it is a well-formed id.

    Raises:
        errors.InvalidField: it has another form; the message names `field`.
    """
    if isinstance(value, str) and PATTERN.fullmatch(value):
        return value
    raise errors.InvalidField(
        field=field,
        reason="an id is 1 to 64 letters, digits, '-' or '_', and starts with a letter or digit",
    )
