"""The first line of a commit message is an area and an imperative."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.commit_message import faults, main

TOP = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "message",
    [
        "storage: wipe COW areas\n",
        "api, client: add a route for groups\n\nThe body says why. It has full stops.\n",
        "tests/vm: let a small area forget what another could not do\n",
        "docs: bring the page of restores up to date",
        "backup: compress what is sent",
        "backup: " + "p" * 64,
        "\n# a comment\nlive: thaw file systems\n",
        "Merge branch 'main' of elsewhere\n",
        'Revert "Storage: Wiped the areas, in a first line that is longer than one may be."\n',
        "fixup! storage: wipe COW areas",
        "",
    ],
)
def test_a_good_first_line(message: str) -> None:
    assert list(faults(message)) == []


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Wipe COW areas", "area"),
        ("Storage: wipe COW areas", "area"),
        ("storage wipe: COW areas", "area"),
        ("storage:wipe COW areas", "area"),
        ("storage: wipe COW areas.", "full stop"),
        ("storage: Wipe COW areas", "imperative"),
        ("storage: wiped COW areas", "imperative"),
        ("storage: wipes COW areas", "imperative"),
        ("storage: wiping COW areas", "imperative"),
        ("backup: " + "p" * 65, "73 characters"),
        ("# a comment\nstorage: wipe COW areas.\n\nbody", "full stop"),
    ],
)
def test_a_bad_first_line(message: str, fault: str) -> None:
    (found,) = faults(message)
    assert fault in found


def test_a_bad_message_is_refused_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text("Fixed it.\n")
    assert main(path) == 1
    told = capsys.readouterr().err
    assert "full stop" in told
    assert "area" in told
    path.write_text("api: mend it\n")
    assert main(path) == 0


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for kind in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{kind}_NAME": "somebody", f"GIT_{kind}_EMAIL": "nobody@example.org"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the tools of this checkout, not a repository yet."""
    folder = tmp_path / "checkout"
    shutil.copytree(TOP / "tools/hooks", folder / "tools/hooks")
    shutil.copy(TOP / "tools/commit_message.py", folder / "tools")
    return folder


def install(checkout: Path) -> Path:
    """Run the installation as tools/setup does; returns where the hook is then."""
    done = run(checkout, checkout / "tools/hooks/install")
    assert (done.returncode, done.stderr) == (0, ""), done
    return checkout / ".git/hooks/commit-msg"


@pytest.mark.starts("git", "install")
def test_git_asks_the_installed_hook(checkout: Path) -> None:
    run(checkout, "git", "init", "-q")
    install(checkout)
    install(checkout)
    refused = run(checkout, "git", "commit", "-q", "--allow-empty", "-m", "Fixed it")
    assert (refused.returncode, "area" in refused.stderr) == (1, True), refused
    made = run(checkout, "git", "commit", "-q", "--allow-empty", "-m", "api: mend it")
    assert made.returncode == 0, made


@pytest.mark.starts("git", "install")
def test_without_a_repository_nothing_is_installed(checkout: Path, tmp_path: Path) -> None:
    assert not install(checkout).exists()
    run(tmp_path, "git", "init", "-q")  # one around the checkout
    assert not install(checkout).exists()
    assert not (tmp_path / ".git/hooks/commit-msg").exists()


@pytest.mark.starts("git", "install")
def test_a_hook_of_ones_own_stays(checkout: Path) -> None:
    run(checkout, "git", "init", "-q")
    own = checkout / ".git/hooks/commit-msg"
    own.parent.mkdir(exist_ok=True)
    own.write_text("#!/bin/sh\n")
    assert not install(checkout).is_symlink()
    own.unlink()
    run(checkout, "git", "config", "core.hooksPath", "elsewhere")
    assert not install(checkout).exists()
    assert not (checkout / "elsewhere").exists()
