"""What is printed, and what a terminal is never told to do."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.client.cli import output, progress
from lunr.client.records import Backup, Export, Group, Job, Volume


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_cleaned_text_has_nothing_a_terminal_acts_on(text: str) -> None:
    clean = output.escape(text)
    assert clean.isprintable()
    if text.isprintable():
        assert clean == text


@pytest.mark.parametrize("terminal", [True, False])
def test_an_id_is_never_cut_off(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    id = "5a1c0ffe-0000-4000-8000-00000000beef"
    monkeypatch.setenv("COLUMNS", "30")
    stdout = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    volume = Volume(id=id, status="ACTIVE", name="[red]long and longer\x1b]0;gone")
    output.print_list([volume], ("id", "name"), as_json=False)
    printed = stdout.getvalue()
    assert id in printed
    assert "\x1b]" not in printed
    assert "…" not in printed
    for word in ("[red]long", "and", "longer\\x1b]0;gone"):
        assert word in printed


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("name", "", "-"),
        ("deleted_at", None, "-"),
        ("created_at", "2026-11-23T12:00:00Z", "2026-11-23 12:00:00"),
        ("created_at", "2026-11-23T12:00:00.000001Z", "2026-11-23 12:00:00"),
        ("size", 3, "3 GiB"),
        ("max_size", 3, "3 GiB"),
        ("bytes_stored", 1 << 30, "1.0 GiB"),
        ("capacity_bytes", 0, "0 B"),
        ("progress", 7, "7 %"),
        ("weight", 100, "100"),
        ("sessions", [], "-"),
        ("sessions", [{"initiator": "iqn.x", "ip": "::1"}], "initiator=iqn.x, ip=::1"),
        ("volume_types", ["default", "fast"], "default, fast"),
        ("quotas", {"volumes": None}, "volumes=-"),
        ("a_new_flag", True, "True"),
    ],
)
def test_values_are_shown_for_people(name: str, value: object, text: str) -> None:
    assert output.format_value(name, value) == text


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Backup(id="b", status="SAVING", size=10, progress=25), "25 %, 2.5 GiB of 10.0 GiB"),
        (Backup(id="b", status="SAVING", size=10), ""),
        (Job(id="j", kind="k", status="RUNNING", progress=7), "7 %"),
        (Group(id="g", status="DELETING", progress=100), "100 %"),
        (Export(id="v", volume_id="v", status="ATTACHING"), ""),
    ],
)
def test_the_bar_says_how_much(record: progress.WaitedRecord, text: str) -> None:
    assert progress.format_amount(record) == text
