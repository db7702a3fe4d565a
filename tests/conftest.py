"""One folder for all a run makes, and a check that nothing else is left of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import evidence, thorough, waiting
from tests.support.shared import SharedServices
from tools.testing import RECORDER, leftovers
from tools.testing.patience import limit

# Its assertions are told apart like those in test modules.
pytest.register_assert_rewrite("tests.support.pool_contract")

pytest_plugins = ["tests.support.services", "tests.support.keystone", "tests.support.faults.relay"]

# Every run tries new examples, also in CI (where hypothesis would repeat the same ones); a failure
# prints the line that repeats it. No deadline: how fast a shared machine is proves nothing.
hypothesis.settings.register_profile("lunr", derandomize=False, deadline=None, print_blob=True)
hypothesis.settings.load_profile("lunr")

_FOLDER = pytest.StashKey[Path]()
_REMOVE = pytest.StashKey[bool]()
_LEFT = pytest.StashKey[list[str]]()
_SERVICES = pytest.StashKey[SharedServices]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the run's folder, and let this process and all it starts put temporary files there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job: programs that the tests start would ignore Ctrl-C like us.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # All workers of pytest-xdist are to draw the same.
    os.environ.setdefault("LUNR_CRASH_SEED", str(random.randrange(1 << 32)))
    if config.option.timeout is None:
        config.option.timeout = limit(float(config.getini("timeout")))
    given = config.option.basetemp
    is_worker = hasattr(config, "workerinput")
    if is_worker:
        shared = Path(config.workerinput["lunr_folder"])
        folder = shared / config.workerinput["workerid"]
        folder.mkdir()
        number = int(config.workerinput["workerid"].removeprefix("gw"))
        waiting.claim_ports(number, config.workerinput["workercount"])
    elif given:  # by someone who wants to look at it
        shared = folder = Path(given).absolute()
        folder.mkdir(parents=True, exist_ok=True)
    else:
        shared = folder = Path(tempfile.mkdtemp(prefix="lunr-tests-"))
    config.option.basetemp = str(folder / "t")  # pytest empties it first
    folder.chmod(0o711)  # PostgreSQL runs as another user, in a folder of its own within
    config.stash[_FOLDER] = folder
    config.stash[_SERVICES] = SharedServices(shared / "services")
    config.pluginmanager.register(evidence)
    config.stash[evidence.FOLDERS] = [folder, config.stash[_SERVICES].folder]
    config.stash[_LEFT] = []
    config.stash[_REMOVE] = not given and not is_worker
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the folder of the run."""
    node.workerinput["lunr_folder"] = str(node.config.stash[_FOLDER])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Announce to the controller what services the tests need."""
    if hasattr(session.config, "workerinput"):
        session.config.stash[_SERVICES].announce(session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """Start what the tests need: this process, which runs none of them, has the time."""
    node.config.stash[_SERVICES].start_announced()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless this run is thorough."""
    thorough.deselect(config, items)
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            item.add_marker(pytest.mark.timeout(limit(mark.args[0])), append=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when something that it started is still there."""
    if hasattr(session.config, "workerinput"):
        # In the folder of the run, where others still work, the controller looks.
        session.config.workeroutput["lunr_left"] = _find_left(leftovers.children)
        return
    session.config.stash[_SERVICES].stop()
    folder = session.config.stash[_FOLDER]
    left = [*session.config.stash[_LEFT], *_find_left(lambda: leftovers.find(folder))]
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[_REMOVE] = False
        lines = ["left over by the tests:", *left]
        recorder: Any = session.config.pluginmanager.get_plugin(RECORDER)
        if recorder is not None:
            recorder.fail("what the tests left over", "\n".join(lines))
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        for line in ("", *lines):
            if reporter is not None:
                reporter.write_line(line, red=True)


def _find_left(find: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + 3  # for what is just ending
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear from a worker which of its processes did not end: they look like nobody's now."""
    node.config.stash[_LEFT] += getattr(node, "workeroutput", {}).get("lunr_left", [])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's folder, unless something in it is still in use."""
    if config.stash.get(_REMOVE, False):
        shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config) -> Path:
    """The folder of this run, or of this worker of it; it is removed at the end."""
    return pytestconfig.stash[_FOLDER]


@pytest.fixture(scope="session")
def shared_services(pytestconfig: pytest.Config) -> SharedServices:
    """The services that this run shares."""
    return pytestconfig.stash[_SERVICES]
