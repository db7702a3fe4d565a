"""Which of the tests that a change reaches are run, and which are named as left out."""

from __future__ import annotations

import pytest

from tools.testing.changed import ALWAYS, BUDGET, select
from tools.testing.reach import Sources
from tools.testing.running import TOP

NEEDS = {
    "lunr/a.py": set[str](),
    "lunr/b.py": {"lunr/a.py"},
    "tests/unit/test_a.py": {"lunr/a.py"},
    "tests/unit/test_b.py": {"lunr/b.py"},
    "tests/unit/test_other.py": set(),
    "tests/system/test_a.py": {"lunr/a.py"},
    "tests/vm/test_a.py": {"lunr/a.py"},
    "tests/support/of_a.py": {"lunr/a.py"},
    **{path: set() for path in ALWAYS},
}
KNOWN = dict.fromkeys(NEEDS, 1.0)


def test_what_is_reached_runs_the_nearest_and_quickest_first() -> None:
    selection = select(NEEDS, ["lunr/a.py"], KNOWN, "HEAD")
    assert [path for path in selection.chosen if path not in ALWAYS] == [
        *("tests/unit/test_a.py", "tests/unit/test_b.py"),
        *("tests/system/test_a.py", "tests/vm/test_a.py"),
    ]
    assert not selection.left_out


def test_what_takes_too_long_is_left_out_by_name() -> None:
    known = {**KNOWN, "tests/system/test_a.py": BUDGET}
    selection = select(NEEDS, ["lunr/a.py"], known, "HEAD")
    assert selection.left_out == {"tests/system/test_a.py": BUDGET}
    assert "tests/vm/test_a.py" in selection.chosen


def test_a_test_that_changed_itself_runs_however_long_it_takes() -> None:
    known = {**KNOWN, "tests/system/test_a.py": 10 * BUDGET}
    selection = select(NEEDS, ["tests/system/test_a.py"], known, "HEAD")
    assert selection.chosen[0] == "tests/system/test_a.py"


def test_what_is_gone_reaches_what_still_names_it() -> None:
    selection = select(NEEDS, ["lunr/gone.py", "tests/unit/test_gone.py"], KNOWN, "HEAD")
    assert selection.chosen == sorted(ALWAYS)


@pytest.mark.parametrize(
    ("changed", "reached", "spared"),
    [
        ("lunr/client/cli/main.py", "tests/unit/client/test_commands.py", "tests/unit/db"),
        (
            "lunr/storage/pools/files/pool.py",
            "tests/system/storage/pools/test_pools.py",
            "tests/unit/client",
        ),
        ("lunr/api/main.py", "tests/functional/api/test_server.py", "tests/unit/backup"),
        ("etc/lunr.conf.sample", "tests/unit/test_documents.py", "tests/system"),
        ("tools/virtual/machine.py", "tests/system/tools/test_vm.py", "tests/unit/api"),
    ],
)
def test_in_this_checkout_changes_reach_what_they_should(
    needs: dict[str, set[str]], changed: str, reached: str, spared: str
) -> None:
    selection = select(needs, [changed], {}, "HEAD")
    tests = [*selection.chosen, *selection.left_out]
    assert reached in tests
    assert not [path for path in tests if path.startswith(spared)]


@pytest.fixture(scope="module")
def needs() -> dict[str, set[str]]:
    paths = [
        path for folder in ("lunr", "tests", "tools", "etc") for path in (TOP / folder).rglob("*")
    ]
    texts = {
        path.relative_to(TOP).as_posix(): path.read_text(errors="replace")
        for path in [*paths, TOP / "setup.cfg"]
        if path.is_file() and "__pycache__" not in path.parts
    }
    return Sources(texts).needs()
