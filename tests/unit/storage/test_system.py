"""The one place that runs a command."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lunr.storage import system
from tests.support.waiting import PATIENCE, SOON


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
    assert time.monotonic() - started < SOON


@pytest.mark.starts("mkfs.nothing")
def test_a_missing_command_is_said() -> None:
    with pytest.raises(system.CommandMissing, match=r"mkfs.nothing is not installed"):
        system.run(["mkfs.nothing"])
    assert "apt-get install xfsprogs" in str(system.missing("mkfs.xfs"))


@pytest.mark.starts("sh")
def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    left = f"(until test -e {tmp_path}/end; do sleep 0.02; done; echo late) &"
    told = system.run(["sh", "-c", f"echo early; {left} echo also"], timeout=SOON)
    (tmp_path / "end").touch()
    assert told.stdout == "early\nalso\n"


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


@pytest.mark.starts("sh")
def test_a_stream_comes_as_it_is_written(tmp_path: Path) -> None:
    script = f"echo early; until test -e {tmp_path}/read; do sleep 0.02; done; echo late"
    pieces = system.stream(["sh", "-c", script], timeout=PATIENCE)
    assert next(pieces) == b"early\n"
    (tmp_path / "read").touch()
    assert b"".join(pieces) == b"late\n"


@pytest.mark.starts("head")
def test_a_long_stream_comes_in_small_pieces() -> None:
    sizes = [len(piece) for piece in system.stream(["head", "-c", "5000000", "/dev/zero"])]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 64 << 10


@pytest.mark.starts("sh")
def test_a_stream_that_fails_says_so_at_its_end() -> None:
    pieces = system.stream(["sh", "-c", "echo half; echo it broke >&2; exit 3"])
    assert next(pieces) == b"half\n"
    with pytest.raises(system.CommandFailed, match="exit code 3: it broke"):
        next(pieces)


@pytest.mark.starts("sh")
@pytest.mark.parametrize("script", ["sleep 60 & sleep 60", "exec >&-; sleep 60", "yes"])
def test_a_stream_that_hangs_or_never_ends_is_killed(script: str) -> None:
    started = time.monotonic()
    with pytest.raises(system.CommandTimeout, match=r"0\.3 seconds"):
        for _ in system.stream(["sh", "-c", script], timeout=0.3):
            pass
    assert time.monotonic() - started < SOON


@pytest.mark.starts("sh")
def test_a_stream_that_nobody_reads_on_is_killed() -> None:
    pieces = system.stream(["sh", "-c", "echo $$; sleep 60"])
    pid = int(next(pieces))
    assert Path(f"/proc/{pid}").exists()
    pieces.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.starts("mkfs.nothing")
def test_a_stream_of_a_missing_command_is_said() -> None:
    with pytest.raises(system.CommandMissing):
        next(system.stream(["mkfs.nothing"]))
