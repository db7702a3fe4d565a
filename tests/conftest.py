"""One folder for all a run makes, and a check that nothing else is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest

from tests.support import leftovers, thorough

# Its assertions are told apart like those in test modules.
pytest.register_assert_rewrite("tests.support.pool_contract")

pytest_plugins = ["tests.support.services", "tests.support.keystone"]

# Every run tries new examples, also in CI (where hypothesis would repeat the same ones); a failure
# prints the line that repeats it. No deadline: how fast a shared machine is proves nothing.
hypothesis.settings.register_profile("lunr", derandomize=False, deadline=None, print_blob=True)
hypothesis.settings.load_profile("lunr")

_FOLDER = pytest.StashKey[Path]()
_REMOVE = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the run's folder, and let this process and all it starts put temporary files there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job: programs that the tests start would ignore Ctrl-C like us.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    given = config.option.basetemp
    if given and not hasattr(config, "workerinput"):  # by someone who wants to look at it
        folder = Path(given).absolute()
        folder.mkdir(parents=True, exist_ok=True)
    else:  # for an xdist worker, this is in the folder of the whole run
        folder = Path(tempfile.mkdtemp(prefix="lunr-tests-"))
    config.option.basetemp = str(folder / "t")  # pytest empties it first
    folder.chmod(0o711)  # PostgreSQL runs as another user, in a folder of its own within
    config.stash[_FOLDER] = folder
    config.stash[_REMOVE] = not given or hasattr(config, "workerinput")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless this run is thorough."""
    thorough.deselect(config, items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when something that it started is still there."""
    folder = session.config.stash[_FOLDER]
    deadline = time.monotonic() + 3  # for what is just ending
    while (left := leftovers.find(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[_REMOVE] = False
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        for line in ("", "left over by the tests:", *left):
            if reporter is not None:
                reporter.write_line(line, red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's folder, unless something in it is still in use."""
    if config.stash.get(_REMOVE, False):
        shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config) -> Path:
    """The folder of this run; it is removed at the end."""
    return pytestconfig.stash[_FOLDER]
