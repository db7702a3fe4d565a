"""What pytest does for tools/test, with several workers and with one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.services import CHECKOUT
from tests.support.waiting import PATIENCE
from tools.testing.records import Collected, Ended, Failed, Reader, Record, Started

#: Files with tests, and what takes how long as earlier runs had it.
FILES = {
    "tests/system/test_quick.py": "def test_1(): pass\ndef test_2(): pass\n",
    "tests/system/test_slow.py": "def test_1(): pass\ndef test_2(): pass\n",
    "tests/unit/test_middle.py": "def test_1(): pass\ndef test_2(): pass\n",
}
KNOWN = {
    "tests/system/test_quick.py": 1,
    "tests/system/test_slow.py": 9,
    "tests/unit/test_middle.py": 5,
}

RunPytest = Callable[..., tuple[int, list[Record]]]


@pytest.fixture
def run(tmp_path: Path) -> RunPytest:
    """Run a suite of these files with this suite's conftest; the exit code, and what is told."""
    record = tmp_path / "record"
    known = tmp_path / "known.json"
    known.write_text(json.dumps(KNOWN))
    shutil.copy(CHECKOUT / "setup.cfg", tmp_path)
    shutil.copytree(CHECKOUT / "tests/support", tmp_path / "tests/support")
    shutil.copy(CHECKOUT / "tests/conftest.py", tmp_path / "tests")

    def run(files: dict[str, str], *arguments: str) -> tuple[int, list[Record]]:
        for name, code in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(code)
        (tmp_path / "tests/__init__.py").touch()
        reader = Reader(record)
        list(reader.read())
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "tools.testing.plugin", f"--record={record}", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},  # its own tests come first
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        print(done.stdout, done.stderr)
        return done.returncode, list(reader.read())

    return run


def ended(told: Sequence[Record]) -> dict[str, str]:
    return {one.id.split("/")[-1]: one.outcome for one in told if isinstance(one, Ended)}


def order(told: Sequence[Record]) -> list[str]:
    return [one.id for one in told if isinstance(one, Started)]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_what_takes_longest_begins_first(
    run: RunPytest, workers: tuple[str, ...], tmp_path: Path
) -> None:
    code, told = run(FILES, f"--durations-of={tmp_path / 'known.json'}", *workers)
    assert code == 0
    assert told[0] == Collected(dict.fromkeys(FILES, 2))
    names = ("system/test_slow", "unit/test_middle", "system/test_quick")
    assert order(told) == [f"tests/{name}.py::test_{n}" for name in names for n in (1, 2)]


def test_workers_agree_on_a_random_order(run: RunPytest) -> None:
    """pytest-xdist runs nothing when they do not."""
    code, told = run(FILES, "--random-seed=3", "-n", "2")
    assert (code, len(ended(told))) == (0, 6)
    orders = set()
    for seed in range(4):
        code, told = run(FILES, f"--random-seed={seed}")
        first = order(told)
        assert [name.split("::")[0] for name in first[::2]] == [
            name.split("::")[0] for name in first[1::2]
        ], "the tests of a file are together"
        orders.add(tuple(first))
    assert len(orders) > 1


def test_failures_are_told_with_what_was_written(run: RunPytest) -> None:
    code, told = run(
        {
            "tests/system/test_it.py": "import pytest\n"
            "def test_bad():\n    print('a clue')\n    assert 1 == 2\n"
            "@pytest.fixture\ndef broken():\n    yield\n    assert 3 == 4\n"
            "def test_untidy(broken): pass\n"
            "@pytest.mark.skip('needs a moon')\ndef test_moon(): pass\n",
            "tests/system/test_unreadable.py": "import nosuchmodule\n",
        },
        *("-n", "2", "--continue-on-collection-errors"),
    )
    assert code == 1
    assert ended(told) == {
        "test_unreadable.py": "failed",
        "test_it.py::test_bad": "failed",
        "test_it.py::test_untidy": "failed",
        "test_it.py::test_moon": "skipped",
    }
    failed = {one.id.split("/")[-1]: one for one in told if isinstance(one, Failed)}
    assert "a clue" in failed["test_it.py::test_bad"].text
    assert failed["test_it.py::test_untidy"].when == "teardown"
    assert "nosuchmodule" in failed["test_unreadable.py"].text
    assert [one.reason for one in told if isinstance(one, Ended) and one.reason] == ["needs a moon"]


def test_a_worker_that_dies_fails_its_test_alone(run: RunPytest) -> None:
    dies = "import os\ndef test_dies():\n    os._exit(3)\ndef test_after(): pass\n"
    _, told = run({"tests/system/test_it.py": dies}, "-n", "1")
    assert ended(told) == {"test_it.py::test_dies": "failed", "test_it.py::test_after": "passed"}


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.run(['setsid', '--fork', 'sleep', '300'], check=True)",
        # Nothing but its parent tells whose it is.
        "kept.append(subprocess.Popen(['sleep', '300'], cwd='/', env={}))",
    ],
)
def test_what_workers_leave_behind_fails_the_run(run: RunPytest, start: str) -> None:
    leaves = f"import subprocess\nkept = []\ndef test_it():\n    {start}\n"
    code, told = run({"tests/system/test_it.py": leaves}, "-n", "2")
    assert code == 1
    (left,) = [one for one in told if isinstance(one, Failed)]
    line = next(line for line in left.text.splitlines() if line.endswith("sleep 300"))
    os.kill(int(line.split()[1].rstrip(":")), signal.SIGKILL)
    assert ended(told)["what the tests left over"] == "failed"


def test_what_passed_before_is_left_out(run: RunPytest, tmp_path: Path) -> None:
    half = "def test_1(): pass\ndef test_2(): assert False\n"
    skip = f"--skip-recorded={tmp_path / 'record'}"
    code, told = run({"tests/system/test_it.py": half}, skip)
    assert (code, len(ended(told))) == (1, 2)
    code, told = run({"tests/system/test_it.py": half.replace("False", "True")}, skip)
    assert (code, ended(told)) == (0, {"test_it.py::test_2": "passed"})
