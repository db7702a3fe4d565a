"""The one place that runs a command."""

from __future__ import annotations

import os
import time

import pytest

from lunr.storage import system


@pytest.mark.starts("cat")
def test_data_goes_in_and_comes_out() -> None:
    data = bytes(range(128)) * 5000  # more than a pipe holds
    assert system.run(["cat"], data=data).stdout.encode() == data
    assert system.run(["cat"]).stdout == ""


@pytest.mark.starts("sh")
def test_a_failure_says_what_and_why() -> None:
    with pytest.raises(system.CommandFailed, match="exit code 3: it broke") as caught:
        system.run(["sh", "-c", "echo it broke >&2; exit 3"])
    assert "sh -c" in str(caught.value)
    assert system.run(["sh", "-c", "exit 3"], accept=(0, 3)).code == 3


@pytest.mark.starts("sh")
def test_the_language_is_c() -> None:
    assert system.run(["sh", "-c", "echo $LC_ALL"]).stdout == "C\n"


@pytest.mark.starts("sh")
def test_a_command_that_hangs_is_killed_with_its_children() -> None:
    started = time.monotonic()
    with pytest.raises(system.CommandTimeout, match=r"0\.3 seconds"):
        system.run(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.3)
    assert time.monotonic() - started < 5


@pytest.mark.starts("mkfs.nothing")
def test_a_missing_command_is_said() -> None:
    with pytest.raises(system.CommandMissing, match=r"mkfs.nothing is not installed"):
        system.run(["mkfs.nothing"])
    assert "apt-get install xfsprogs" in str(system.missing("mkfs.xfs"))


@pytest.mark.starts("sh")
def test_what_a_command_leaves_running_is_not_waited_for() -> None:
    started = time.monotonic()
    told = system.run(["sh", "-c", "echo early; (sleep 3; echo late) & echo also"], timeout=2.5)
    assert told.stdout == "early\nalso\n"
    assert time.monotonic() - started < 2


@pytest.mark.starts("sh")
def test_no_descriptor_is_inherited() -> None:
    reading, writing = os.pipe()
    try:
        os.set_inheritable(writing, True)
        inside = system.run(["sh", "-c", "echo /proc/self/fd/* /proc/$$/fd/*"]).stdout
    finally:
        os.close(reading)
        os.close(writing)
    assert {path.rpartition("/")[2] for path in inside.split()} <= {"0", "1", "2", "3"}
