"""The guards of the test suite bite: each is shown a test that breaks its rule."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import CHECKOUT
from tests.support.waiting import PATIENCE, wait_until
from tools.testing import leftovers, levels
from tools.testing.main import main


def run_pytest(folder: Path, level: str, code: str) -> tuple[int, str]:
    """Run `code` as the only test file of a suite with this suite's conftests."""
    tests = folder / "tests"
    (tests / level).mkdir(parents=True)
    for name in ("__init__.py", "conftest.py", "unit/conftest.py", "unit/__init__.py"):
        (tests / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / "tests" / name, tests / name)
    shutil.copytree(CHECKOUT / "tests/support", tests / "support")
    shutil.copy(CHECKOUT / "setup.cfg", folder)
    (tests / level / "test_it.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},  # its own tests come first
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "start",
    [
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.fork() or os._exit(0)",
        "import multiprocessing as m; m.get_context('fork').Process(target=len).start()",
        "import subprocess, contextlib\n"
        "    with contextlib.suppress(BaseException): subprocess.run(['true'])",
    ],
)
def test_a_unit_test_that_starts_a_process_fails(start: str, tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "unit", f"def test_it():\n    {start}\n")
    assert code == 1
    assert "a unit test may not start a process" in output


def test_a_unit_test_may_start_what_it_names(tmp_path: Path) -> None:
    named = "import pytest, subprocess\n@pytest.mark.starts('true')\n"
    test = "def test_it():\n    subprocess.run(['true'], check=True)\n"
    code, output = run_pytest(tmp_path, "unit", named + test)
    assert code == 0, output


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.Popen(['sleep', '30'])",
        # Its parent is gone and it has a session of its own: only the environment tells.
        "subprocess.run(['setsid', '--fork', 'sleep', '30'])",
    ],
)
def test_a_process_left_behind_fails_the_run(start: str, tmp_path: Path) -> None:
    code, output = run_pytest(
        tmp_path,
        "system",
        "import subprocess, warnings\n"
        "def test_it():\n"
        "    warnings.simplefilter('ignore')\n"
        f"    {start}\n",
    )
    assert code == 1, output
    assert "1 passed" in output
    line = next(line for line in output.splitlines() if line.endswith("sleep 30"))
    os.kill(int(line.split()[1].rstrip(":")), signal.SIGKILL)


def test_a_run_removes_its_folder(tmp_path: Path) -> None:
    where = tmp_path / "where"
    test = f"def test_it(tmp_path):\n    open({str(where)!r}, 'w').write(str(tmp_path))\n"
    code, output = run_pytest(tmp_path, "unit", test)
    assert code == 0, output
    assert not Path(where.read_text()).exists()


def test_a_level_without_a_test_fails(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "WORKERS", 1)
    assert main(["crash", "--", "-k", "nothing_is_called_like_this"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_a_child_is_ours_whatever_it_looks_like(tmp_path: Path) -> None:
    def found() -> bool:
        return any(one.startswith(f"process {child.pid}:") for one in leftovers.find(tmp_path))

    with subprocess.Popen(["sleep", "30"], cwd="/", env={}) as child:
        assert found()
        child.kill()
        wait_until(lambda: not found(), what="the child ended")


def test_what_does_not_refer_to_the_folder_is_not_ours(tmp_path: Path) -> None:
    other = subprocess.run(
        ["setsid", "--fork", "sh", "-c", "echo $$; exec >&-; exec sleep 2"],
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    pid = int(other.stdout)
    assert not any(one.startswith(f"process {pid}:") for one in leftovers.find(tmp_path))
    os.kill(pid, signal.SIGKILL)
