"""The VM's launcher understands its arguments, and quotes what it hands to a shell."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from tools.virtual import launch, machine, qemu, uml
from tools.virtual.launch import NO_ANSWER, TIMED_OUT, Disk, Order


@pytest.mark.parametrize(
    ("text", "size", "plain"),
    [("512M", 512 << 20, False), ("4G", 4 << 30, False), ("1G,plain", 1 << 30, True)],
)
def test_disks(text: str, size: int, plain: bool) -> None:
    assert machine.parse_disk(text) == Disk(size, plain)


@pytest.mark.parametrize("text", ["", "G", "4", "4T", "4G,fast", "-1G"])
def test_a_disk_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no size"):
        machine.parse_disk(text)


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "--"], ["walk", "--", "true"]])
def test_without_a_command_it_says_how(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.main(arguments) == 2
    assert "tools/vm" in "".join(capsys.readouterr())


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(["--help"]) == 0
    assert "--disk SIZE" in capsys.readouterr().out


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout for which nothing was fetched."""
    for module in (machine, qemu):
        monkeypatch.setattr(module, "CACHE", tmp_path)
    monkeypatch.setattr(uml, "KERNELS", tmp_path / "uml")
    return tmp_path


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("options", [[], ["--machine", "uml"], ["--machine", "qemu"]])
def test_without_a_kernel_it_says_what_to_do(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.main(["run", *options, "--", "true"]) == NO_ANSWER
    assert "tools/setup --vm" in capsys.readouterr().err


def ordered(monkeypatch: pytest.MonkeyPatch, *options: str) -> list[tuple[str, Order]]:
    """The machine that is run with these options, and what it is to do."""
    orders: list[tuple[str, Order]] = []

    def take(name: str, order: Order) -> int:
        orders.append((name, order))
        return 0

    for name in machine.MACHINES:
        monkeypatch.setitem(machine.MACHINES, name, lambda order, name=name: take(name, order))
    assert machine.main(["run", *options, "--", "true", "--now"]) == 0
    return orders


def test_a_machine_gets_all_that_was_said(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["--disk", "1G", "--disk", "1M,plain", "--share", "/srv", "--memory", "99", "--udev"]
    disks, command = [Disk(1 << 30), Disk(1 << 20, is_plain=True)], ["true", "--now"]
    order = Order(command, disks, [Path("/srv")], 99, udev=True, timeout=1.5, verbose=True)
    (taken,) = ordered(monkeypatch, *said, "--timeout", "1.5", "-v", "--machine", "qemu")
    assert taken == ("qemu", order)


def test_uml_is_the_default_and_qemu_where_no_uml_runs(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_cache / "initramfs.cpio").touch()
    assert ordered(monkeypatch)[0][0] == "qemu"
    assert "slowly" in capsys.readouterr().err
    (empty_cache / "uml").mkdir()
    (empty_cache / "uml" / "chosen").write_text("7.2um1\n")
    assert ordered(monkeypatch)[0][0] == "uml"
    monkeypatch.setenv("LUNR_VM_MACHINE", "qemu")
    assert ordered(monkeypatch)[0][0] == "qemu"
    assert ordered(monkeypatch, "--machine", "uml")[0][0] == "uml"
    assert capsys.readouterr().err == ""


@pytest.mark.starts("sh")
def test_what_the_guest_reads_is_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = 'it\'s "$HOME"\n`x` \\'
    monkeypatch.setenv("LUNR_TEST_ODD", odd)
    monkeypatch.setenv("BASH_FUNC_odd%%", "() { :; }")
    order = Order(["echo", odd, ""], shares=[tmp_path / "a share"])
    launch.write_order(tmp_path, order, "uml", Path("/a folder/modules"))
    assert (tmp_path / "command").read_bytes() == b"echo\0" + odd.encode() + b"\0\0"
    assert (tmp_path / "shares").read_text() == f"{tmp_path}/a share\n"
    script = '. "$0/settings"; . "$0/environment"; printf %s "$modules|$udev|$LUNR_TEST_ODD"'
    done = subprocess.run(["sh", "-c", script, tmp_path], capture_output=True, check=True)
    assert done.stdout.decode() == f"/a folder/modules|no|{odd}"
    assert (tmp_path / "environment").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("said", "timed_out", "code"),
    [("7\n", False, 7), ("", False, NO_ANSWER), ("boo", False, NO_ANSWER), ("", True, TIMED_OUT)],
)
def test_how_it_ended(
    said: str, timed_out: bool, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code").write_text(said)
    (tmp_path / "console").write_text("Kernel panic\n")
    order = Order(["true"], timeout=5)
    assert launch.judge_end(order, tmp_path / "code", tmp_path / "console", timed_out) == code
    assert ("Kernel panic" in capsys.readouterr().err) == (code != 7)
