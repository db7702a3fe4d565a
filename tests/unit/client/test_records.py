"""Answers as dataclasses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.client import records
from lunr.client.errors import BadAnswer

KINDS = [
    kind
    for kind in vars(records).values()
    if isinstance(kind, type)
    and issubclass(kind, records.Record)
    and kind not in (records.Record, records.JobRecord)
]
NEEDED = {
    **dict.fromkeys(("id", "volume_id", "name"), "x1"),
    "status": "ACTIVE",
    "kind": "backup.save",
    "every": "1d",
    "keep": True,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text(min_size=1), JSON))
def test_what_the_server_told_is_told_on(others: dict[str, object]) -> None:
    others.pop("extra", None)
    told = {**others, **NEEDED}
    for kind in KINDS:  # to make one up takes longer than to parse it
        record = kind.parse(told)
        assert {name: record.as_dict()[name] for name in told} == told
        assert kind.parse(record.as_dict()) == record


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_without_what_makes_it_one_is_refused(kind: type[records.Record]) -> None:
    with pytest.raises(BadAnswer, match=kind.__name__):
        kind.parse({})


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_of_a_list_are_fields(kind: type[records.Record]) -> None:
    names = {field.name for field in fields(kind)}
    assert set(kind.columns) <= names
    assert not names & {"columns"}
    assert len(set(kind.columns)) == len(kind.columns)


def test_records_do_not_change() -> None:
    volume = records.Volume.parse({"id": "v1", "status": "ACTIVE"})
    with pytest.raises(FrozenInstanceError):
        volume.status = "ERROR"  # type: ignore[misc]


@pytest.mark.parametrize(
    "record",
    [
        records.Export.parse({"volume_id": "v", "status": "ATTACHED", "auth_password": "hush"}),
        records.Token.parse({"id": "t", "token": "hush"}),
        records.Node.parse({"id": "n", "token": "hush"}),
        records.Volume.parse({"id": "v", "status": "ACTIVE", "a_new_secret": "hush"}),
    ],
)
def test_secrets_are_not_in_a_repr(record: records.Record) -> None:
    assert "hush" not in repr(record)
    assert "hush" in record.as_dict().values()


def test_an_export_has_its_volumes_id() -> None:
    assert records.Export.parse({"volume_id": "v", "status": "ATTACHED"}).id == "v"
