"""What may be asked of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common import errors
from lunr.storage.targets.base import Export

GOOD: dict[str, Any] = {
    "volume_id": "v1",
    "path": Path("/pool/v1"),
    "iqn": "iqn.2026-11.io.lunr:v1",
    "lun": 1,
    "username": "user",
    "password": "secret-of-12",
    "serial": "v1",
    "initiator": "iqn.x:y",
    "ip": "10.0.0.5",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("volume_id", "../v1"),
        ("iqn", "iqn.2026-11.io.lunr:v2"),
        ("iqn", "lunr:v1"),
        ("lun", 0),
        ("lun", 256),
        ("username", "a,b"),
        ("username", ""),
        ("password", "a b"),
        ("password", "a\nb"),
        ("serial", "a,vendor_id=X"),
        ("initiator", "ALL"),
        ("initiator", "10.0.0.5"),
        ("initiator", "iqn.x:y initiator-address=ALL"),
        ("initiator", "iqn." + "x" * 220),
        ("initiator", ""),
        ("ip", "ALL"),
        ("ip", "10.0.0.0/8"),
        ("ip", "host.example"),
        ("ip", ""),
    ],
)
def test_what_could_mean_something_else_is_refused(field: str, value: Any) -> None:
    with pytest.raises(errors.InvalidField):
        Export(**{**GOOD, field: value})


def test_somebody_must_be_named() -> None:
    with pytest.raises(errors.InvalidField, match="initiator"):
        Export(**{**GOOD, "initiator": None, "ip": None})


@given(st.text(min_size=1, max_size=300))
def test_no_text_reaches_the_daemon_that_it_would_split(text: str) -> None:
    for field in ("username", "password", "initiator", "ip", "serial"):
        try:
            export = Export(**{**GOOD, field: text})
        except errors.InvalidField:
            continue
        value = getattr(export, field)
        assert not set(value) & set(", \t\n\0")
        assert field in ("username", "password", "serial") or "=" not in value


@pytest.mark.parametrize(
    ("initiator", "ip", "expected"),
    [
        ("iqn.x:y", None, {("iqn.x:y", "10.0.0.5"), ("iqn.x:y", "10.0.0.6")}),
        (None, "10.0.0.5", {("iqn.x:y", "10.0.0.5"), ("iqn.x:z", "10.0.0.5")}),
        ("iqn.x:y", "10.0.0.5", {("iqn.x:y", "10.0.0.5")}),
    ],
)
def test_admits_those_it_is_for(
    initiator: str | None, ip: str | None, expected: set[tuple[str, str]]
) -> None:
    export = Export(**{**GOOD, "initiator": initiator, "ip": ip})
    admitted = {
        (name, address)
        for name in ("iqn.x:y", "iqn.x:z")
        for address in ("10.0.0.5", "10.0.0.6")
        if export.admits({"initiator": name, "ip": address})
    }
    assert admitted == expected


def test_a_secret_is_not_shown() -> None:
    assert GOOD["password"] not in repr(Export(**GOOD))
