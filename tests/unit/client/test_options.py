"""Values of options, and the openrc file."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.client.cli.context import ClientContext, read_openrc
from lunr.client.cli.options import PAIR, SIZE
from lunr.common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "gib"),
    [("10", 10), ("10G", 10), ("10g", 10), ("10GiB", 10), ("1T", 1024), ("2tib", 2048), ("007", 7)],
)
def test_sizes(text: str, gib: int) -> None:
    assert SIZE.convert(text, None, None) == gib


@given(st.text())
def test_a_size_is_a_positive_number_or_refused(text: str) -> None:
    try:
        assert SIZE.convert(text, None, None) > 0
    except click.BadParameter:
        return
    assert text.strip()[0].isdigit()


@pytest.mark.parametrize("text", ["0", "1.5", "1GB", "1M", "-1", "1e3", "٣", "", "G", "9" * 10])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


@given(st.text().filter(lambda key: key and "=" not in key), st.text())
def test_pairs(key: str, value: str) -> None:
    assert PAIR.convert(f"{key}={value}", None, None) == (key, value)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_openrc_file_may_be_written_as_shells_read_it(tmp_path: Path) -> None:
    text = """# made by hand
    export LUNR_URL=http://127.0.0.1:8080
    LUNR_ACCOUNT='acme'   # quoted
    export LUNR_TOKEN="abc=="
    """
    assert read_openrc(write(tmp_path / "openrc", text)) == {
        "LUNR_URL": "http://127.0.0.1:8080",
        "LUNR_ACCOUNT": "acme",
        "LUNR_TOKEN": "abc==",
    }


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "openrc", "LUNR_TOKEN=abc", mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_openrc(path)


@pytest.mark.parametrize("text", ["LUNR_TOKEN 'abc", "source other-file", "LUNR_TOKEN=a b"])
def test_what_is_no_openrc_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_openrc(write(tmp_path / "openrc", text))
    assert "abc" not in str(caught.value)


def test_bytes_are_no_openrc_file(tmp_path: Path) -> None:
    path = tmp_path / "openrc"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_openrc(path)


def test_an_option_beats_the_file_and_the_file_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LUNR_URL", "LUNR_ACCOUNT", "LUNR_TOKEN"):
        monkeypatch.setitem(os.environ, name, "http://env" if name == "LUNR_URL" else "env")
    path = write(tmp_path / "openrc", "LUNR_URL=http://file\nLUNR_ACCOUNT=file")
    context = ClientContext(None, "option", path)
    assert (context.client.url, context.client.account) == ("http://file", "option")
    context.close()
