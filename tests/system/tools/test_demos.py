"""The demonstrations, as a person starts them: they succeed, fail and are interrupted properly."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.services import CHECKOUT, need_command, need_root
from tests.support.waiting import free_port, wait_until
from tools.demos import stage
from tools.demos.performance import check_machine
from tools.testing import leftovers
from tools.virtual.debian.guest import MAKE

pytestmark = pytest.mark.timeout(600)  # alone they take at most 30 s


@pytest.fixture
def folder(run_folder: Path) -> Iterator[Path]:
    """What a demonstration has as TMPDIR; a short path, as sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="d", dir=run_folder) as name:
        yield Path(name)


def demo(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """tools/demo, under way."""
    return subprocess.Popen(
        [CHECKOUT / "tools/demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), **variables},
    )


def need_service() -> None:
    need_root()
    for command, package in (("tgtd", "tgt"), ("mkfs.xfs", "xfsprogs"), ("qemu-io", "qemu-utils")):
        need_command(command, package)


def need_guest(commands: list[list[str]]) -> None:
    """Make what virtual machines need, which takes long once; skip the test where it can't be."""
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize(
    ("arguments", "last_step"),
    [
        (["--size", "32"], "collect garbage: the store is empty"),
        (["--size", "32", "--swift"], "collect garbage: the store is empty"),
        (["lazy", "--size", "32"], "the limit is lifted, and the rest is filled in"),
        (["live", "--backups", "2"], "its disks are filled while it runs"),
    ],
    ids=["main", "swift", "lazy", "live"],
)
def test_a_demonstration_succeeds_and_leaves_nothing(
    arguments: list[str], last_step: str, folder: Path
) -> None:
    if "live" in arguments:
        need_guest(MAKE[:1])
    else:
        need_service()
    if "lazy" in arguments:
        need_guest(MAKE)
    process = demo(*arguments, folder=folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert last_step in output
    assert list(folder.iterdir()) == []
    assert leftovers.find(folder) == []


@pytest.mark.parametrize(
    ("arguments", "broken", "step", "log"),
    [
        (["--size", "32"], "mke2fs", "make an ext4 image", "lunr/log/api.log"),
        (["live"], "qemu-system-x86_64", "boot a guest", "qemu.log"),
    ],
    ids=["main", "live"],
)
def test_a_failed_one_keeps_its_folder_shows_its_logs_and_says_what_to_try(
    arguments: list[str], broken: str, step: str, log: str, folder: Path, tmp_path: Path
) -> None:
    if "live" in arguments:
        need_guest(MAKE[:1])
    else:
        need_service()
    (tmp_path / broken).write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    (tmp_path / broken).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = demo(*arguments, folder=folder, PATH=path, LUNR_PATIENCE="2")
    output, _ = process.communicate()
    assert process.returncode == 1, output
    (kept,) = folder.iterdir()
    assert f"--- the end of {kept / log}\n" in output
    assert "it is broken" in output
    assert f"It failed at: {step}" in output
    assert f"kept in {kept};" in output
    assert f"LUNR_PATIENCE=10 {shlex.join(['tools/demo', *arguments])} " in output
    assert f"rm -r {kept} " in output
    assert leftovers.find(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_one_leaves_nothing(number: signal.Signals, folder: Path) -> None:
    need_service()
    process = demo("--size", "32", folder=folder)
    wait_until(lambda: list(folder.glob("*/lunr/run/tgtd*")), what="parts of lunr run")
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number, output
    assert "nothing is left" in output
    assert list(folder.iterdir()) == []
    assert leftovers.find(folder) == []


@pytest.mark.parametrize("arguments", [[], ["lazy"], ["live"]], ids=["main", "lazy", "live"])
def test_help_is_shown(arguments: list[str], folder: Path) -> None:
    process = demo(*arguments, "--help", folder=folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.startswith(f"Usage: {' '.join(['tools/demo', *arguments])} [OPTIONS]")
    if not arguments:
        assert "tools/demo live" in output and "tools/demo lazy" in output


def test_what_the_machine_lacks_is_said_before_anything_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    check_machine(1, root=False)
    with pytest.raises(click.ClickException, match="TMPDIR=/var/tmp"):
        check_machine(1 << 60, root=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(click.ClickException, match="as root"):
        check_machine(1, root=True)
    long = folder / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(click.ClickException, match="too long"):
        check_machine(1, root=False)


def test_a_service_takes_other_ports_when_one_was_taken_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_service()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [port]
        monkeypatch.setattr(stage, "free_port", lambda *_: ports.pop() if ports else free_port())
        lunr = stage.Lunr(folder / "lunr")
        assert lunr.api_port == port
        try:
            lunr.wait_until_up()
            assert port not in (lunr.api_port, int(lunr.portal.rpartition(":")[2]))
            assert list(lunr.client().volumes.list()) == []
        finally:
            lunr.stop()
