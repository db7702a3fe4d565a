"""The tests that what changed reaches, as many as are run in less than a minute."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from tools.testing import levels, reach, records
from tools.testing.durations import read_durations, seconds_of
from tools.testing.running import TOP

#: Seconds that the tests may take, one after another: two at once, and what comes before and
#: after them leave a minute.
BUDGET = 60.0
#: Seconds that a VM costs before its first test.
A_VM = 20.0
#: A test at hand of a higher level counts like one of a lower level so many steps further off.
FAR = {"unit": 0, "functional": 1, "system": 2, "vm": 2, "crash": 3}
#: These read all sources or all pages.
ALWAYS = ("tests/unit/test_architecture.py", "tests/unit/test_documents.py")
_TEST = re.compile(r"tests/.*/test_\w+\.py")


@dataclass
class Selection:
    """Files with tests: those to be run, and those that there is no time for."""

    since: str
    changed: list[str]
    chosen: list[str] = field(default_factory=list)
    left_out: dict[str, float] = field(default_factory=dict)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _resolve(*arguments: str) -> str:
    """The commit, or nothing if there is no such."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def default_revision() -> str:
    """What to compare with: where this branch left the one it is to go to.

    What was not committed yet counts by itself when all that was is there already, and the
    last commit when all was committed.
    """
    head = _git("rev-parse", "HEAD")
    for target in ("@{upstream}", "main"):
        base = _resolve("merge-base", "HEAD", target)
        if base and base != head:
            return base
    if _git("status", "--porcelain"):
        return head
    return _resolve("rev-parse", "--verify", "--quiet", "HEAD~1") or head


def changed_files(revision: str) -> list[str]:
    """What is other than in `revision`, committed or not."""
    changed = _git("diff", "--name-only", "--no-renames", revision, "--").splitlines()
    return sorted({*changed, *_git("ls-files", "--others", "--exclude-standard").splitlines()})


def read_sources() -> dict[str, str]:
    """The texts of all files."""
    paths = _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {
        path: (TOP / path).read_text(errors="replace") for path in paths if (TOP / path).is_file()
    }


def select(
    needs: Mapping[str, set[str]], changed: list[str], known: Mapping[str, float], since: str
) -> Selection:
    """Choose among the files with tests that `changed` reaches.

    Those that changed themselves are run; then what is near and quick, as long as time allows.
    """
    found = reach.distances(needs, changed)
    found.update({path: found.get(path, 1) for path in ALWAYS if path in needs})
    tests = [path for path in found if _TEST.fullmatch(path) and path in needs]

    def rank(path: str) -> tuple[int, float, str]:
        return (found[path] + FAR[records.level_of(path)], seconds_of(path, known), path)

    selection = Selection(since, changed)
    spent = 0.0
    has_vm = False
    for path in sorted(tests, key=lambda path: (found[path] > 0, rank(path))):
        seconds = seconds_of(path, known)
        is_first_vm = records.level_of(path) == "vm" and not has_vm
        cost = seconds + (A_VM if is_first_vm else 0)
        if found[path] == 0 or path in ALWAYS or spent + cost <= BUDGET:
            spent += cost
            has_vm |= is_first_vm
            selection.chosen.append(path)
        else:
            selection.left_out[path] = seconds
    return selection


def select_changed(revision: str | None) -> Selection:
    """The tests that the changes since `revision` reach.

    Raises:
        ValueError: there is no such revision.
    """
    since = (
        _resolve("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") if revision else ""
    )
    if revision and not since:
        raise ValueError(f"git knows no revision {revision}")
    since = since or default_revision()
    needs = reach.Sources(read_sources()).needs()
    return select(needs, changed_files(since), read_durations(levels.DURATIONS), since)
