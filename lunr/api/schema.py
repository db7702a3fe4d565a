"""The fields of requests: what each may be, said once and checked in one place.

A value comes from JSON and must have the right type, or from a form or the
query, where all are strings (:class:`FormValue`) and are read as what the field is.
null is the same as leaving a field out.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from lunr.common import errors, ids

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
_IQN = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.|eui\.|naa\.)[A-Za-z0-9.:_-]{1,210}")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
#: The largest size in GiB: what a 32-bit column holds and ext4 and XFS outlive.
MAX_SIZE = (1 << 31) - 1
#: The largest count of bytes: a 64-bit column.
MAX_BYTES = (1 << 63) - 1


class FormValue(str):
    """A string from a form or the query, that may stand for a number or a boolean."""

    __slots__ = ()


class Field(Protocol):
    """What a field may be."""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        ...

    def parse(self, name: str, value: Any) -> Any:
        """`value` as the services take it.

        Raises:
            errors.InvalidField: it is not what the field may be.
        """
        ...


Schema = Mapping[str, Field]


@dataclass(frozen=True)
class String:
    """A string of at most `longest` characters, none of them a control character."""

    longest: int = 255
    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The string."""
        if not isinstance(value, str):
            raise errors.InvalidField(field=name, reason="it is a string")
        if len(value) > self.longest:
            raise errors.InvalidField(
                field=name, reason=f"it has at most {self.longest} characters, not {len(value)}"
            )
        if _CONTROL.search(value):
            raise errors.InvalidField(field=name, reason="it has no control characters")
        return str(value)


@dataclass(frozen=True)
class Text:
    """What a program says to people: never refused, but cleaned and cut to `longest` characters."""

    longest: int
    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The text."""
        if not isinstance(value, str):
            raise errors.InvalidField(field=name, reason="it is a string")
        return _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else "?", value)[
            : self.longest
        ]


@dataclass(frozen=True)
class Id:
    """An id (lunr.common.ids)."""

    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The id."""
        return str(ids.check(value, name))


@dataclass(frozen=True)
class Integer:
    """A whole number from `least` to `most`."""

    least: int
    most: int
    required: bool = False

    def parse(self, name: str, value: Any) -> int:
        """The number."""
        if isinstance(value, FormValue) and _INTEGER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.InvalidField(field=name, reason="it is a whole number")
        if not self.least <= value <= self.most:
            raise errors.InvalidField(
                field=name, reason=f"it is a number from {self.least} to {self.most}"
            )
        return value


@dataclass(frozen=True)
class Boolean:
    """True or false; in forms also 1 and 0, yes and no, on and off."""

    required: bool = False

    def parse(self, name: str, value: Any) -> bool:
        """The boolean."""
        if isinstance(value, FormValue):
            if value.lower() in ("true", "1", "yes", "on"):
                return True
            if value.lower() in ("false", "0", "no", "off"):
                return False
        if not isinstance(value, bool):
            raise errors.InvalidField(field=name, reason="it is true or false")
        return value


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]
    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The word."""
        if not isinstance(value, str) or value not in self.words:
            raise errors.InvalidField(field=name, reason=f"it is one of {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class Initiator:
    """The name of an iSCSI initiator (RFC 3720, section 3.2.6)."""

    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The name."""
        if not isinstance(value, str) or not _IQN.fullmatch(value):
            raise errors.InvalidField(
                field=name, reason="it is an iSCSI name, like iqn.1993-08.org.debian:01:abc"
            )
        return value


@dataclass(frozen=True)
class Address:
    """An IP address, of version 4 or 6."""

    required: bool = False

    def parse(self, name: str, value: Any) -> str:
        """The address in its usual spelling."""
        try:
            if isinstance(value, str) and "%" not in value:
                return str(ipaddress.ip_address(value))
        except ValueError:
            pass  # told below, as for what is no string
        raise errors.InvalidField(field=name, reason="it is an IP address")


@dataclass(frozen=True)
class DateTime:
    """A time, in ISO 8601 with its zone."""

    required: bool = False

    def parse(self, name: str, value: Any) -> datetime:
        """The time, naive and in UTC."""
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else None
            if moment is not None and moment.tzinfo is not None:
                return moment.astimezone(UTC).replace(tzinfo=None)
        except (ValueError, OverflowError):
            pass  # told below, as for what is no string
        raise errors.InvalidField(field=name, reason="it is a time like 2026-11-23T12:00:00Z")


@dataclass(frozen=True)
class Array:
    """A list of at most `most` items; in a form or query set apart by commas."""

    item: Field
    most: int
    required: bool = False

    def parse(self, name: str, value: Any) -> list[Any]:
        """The list."""
        if isinstance(value, FormValue):
            value = [FormValue(item) for item in value.split(",")] if value else []
        if not isinstance(value, list) or len(value) > self.most:
            raise errors.InvalidField(field=name, reason=f"it is a list of at most {self.most}")
        return [self.item.parse(f"{name}[{i}]", item) for i, item in enumerate(value)]


@dataclass(frozen=True)
class Object:
    """An object with free keys and values of one kind; in a form or query: ``NAME.KEY=VALUE``."""

    value: Field = field(default_factory=String)
    most: int = 128
    required: bool = False

    def parse(self, name: str, value: Any) -> dict[str, Any]:
        """The object."""
        if not isinstance(value, dict) or len(value) > self.most:
            raise errors.InvalidField(
                field=name, reason=f"it is an object with at most {self.most} keys"
            )
        for key in value:
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise errors.InvalidField(
                    field=name,
                    reason="a key has 1 to 255 letters, digits, '_', '-', '.' and ':', "
                    "and starts with a letter, a digit or '_'",
                )
        return {key: self.value.parse(f"{name}.{key}", item) for key, item in value.items()}


@dataclass(frozen=True)
class Fields:
    """An object with known fields; in a form or query: ``NAME.FIELD=VALUE``.

    `nulls`: null is a value of its fields, and kept.
    """

    schema: Schema
    nulls: bool = False
    required: bool = False

    def parse(self, name: str, value: Any) -> dict[str, Any]:
        """The object, with what was given of it."""
        if not isinstance(value, dict):
            raise errors.InvalidField(field=name, reason="it is an object")
        parsed = parse(self.schema, value, f"{name}.")
        if self.nulls:
            parsed |= {key: None for key, item in value.items() if item is None}
        return parsed


@dataclass(frozen=True)
class Json:
    """An object that is kept as it is (a node's result)."""

    required: bool = False

    def parse(self, name: str, value: Any) -> dict[str, Any]:
        """The object."""
        if not isinstance(value, dict):
            raise errors.InvalidField(field=name, reason="it is an object")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidField(field=name, reason="it has half a character") from error
        return value


def parse(schema: Schema, given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a request, those that were given.

    Args:
        given: name -> value.
        prefix: what the names of the fields begin with in messages.

    Raises:
        errors.UnknownField: there is one that the schema does not know.
        errors.InvalidField: one is not what it may be, or a required one is missing.
    """
    parsed = {}
    for name, (value) in given.items():
        if name not in schema:
            known = ", ".join(sorted(schema)) or "none"
            raise errors.UnknownField(field=_shown(prefix + name), known=known)
        if value is not None:
            parsed[name] = schema[name].parse(prefix + name, value)
    for name, spec in schema.items():
        if spec.required and name not in parsed:
            raise errors.InvalidField(field=prefix + name, reason="it is needed")
    return parsed


def _shown(name: str) -> str:
    return ascii(name[:64])
