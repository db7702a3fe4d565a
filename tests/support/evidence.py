"""What it takes to understand a test that failed: the ends of logs, the state of devices.

The report of the test gets it in sections, and it is printed at once: a run that hangs later does
not come to its summary. Logs are found by themselves: every ``*.log``, or file named ``log``, that
was written to during the test under the run's folders.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tools.testing import leftovers

#: Bounds of what is told of one test, and of how many tests of a run.
LINES, LINE_LENGTH, LOGS, TESTS = 40, 300, 12, 10
#: Folders and files looked at for logs, at most: a test may make a hundred thousand.
_ENTRIES = 20_000
#: Seconds that a command which asks for the state of devices may take.
_COMMAND_LIMIT = 10

#: Of the session's configuration: the folders of the run, that of this process first.
FOLDERS = pytest.StashKey[list[Path]]()
_BEGAN = pytest.StashKey[float]()
_TOLD = pytest.StashKey[int]()

#: What may be a secret, however it is written: `name = value`, "name": "value", name:value.
_NAMED = re.compile(
    r"""(?ix) ( [\w-]* (?:password|passwd|secret|token|api_key|apikey|credential|kek) [\w-]* ["']?
        \s* (?: [=:] | \s ) \s* ["']? (?: Bearer\s+ )? ) [^\s"',;&}\])]{4,} """
)
#: A Fernet token; a key or a digest in hexadecimal digits, whose beginning tells which.
_BARE = re.compile(r"(gAAAA)[\w=-]{20,}|\b([0-9a-f]{8})[0-9a-f]{32,}\b")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Print failures in the process that has a terminal."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Printer(config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when the test began."""
    item.stash[_BEGAN] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect what explains a failure, while all is still there."""
    report = yield
    told = item.session.stash.get(_TOLD, 0)
    # A unit test starts nothing, and the commands that ask would count as started by it.
    if report.failed and told < TESTS and not item.nodeid.startswith("tests/unit/"):
        item.session.stash[_TOLD] = told + 1
        since = item.stash.get(_BEGAN, 0.0) - 1  # some file systems round
        report.sections.extend(collect_sections(item.config.stash[FOLDERS], since))
    return report


class _Printer:
    """Tells at once why something failed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if not report.failed or reporter is None:
            return
        reporter.ensure_newline()
        reporter.write_line(f"{report.nodeid}, {report.when}, after {report.duration:.0f} s:")
        reporter.write_line(report.longreprtext)
        for title, text in report.sections:
            reporter.write_line(f"--- {title}")
            reporter.write_line(text)


def collect_sections(folders: list[Path], since: float) -> Iterator[tuple[str, str]]:
    """Titles and texts: logs written to since then, and the state of devices.

    `folders` are those of the run; what this process made is in the first one.
    """
    logs = sorted({log for folder in folders for log in _find_logs(folder, since)}, key=_written)
    for log in logs[-LOGS:]:
        yield f"end of {log}", shorten(_end_of(log))
    for title, text in _device_states(folders):
        if text.strip():
            yield title, shorten(text)


def shorten(text: str) -> str:
    """The last lines of `text`, none of them long, without secrets."""
    lines = [line[:LINE_LENGTH] for line in text.splitlines()[-LINES:]]
    return hide_secrets("\n".join(lines))


def hide_secrets(text: str) -> str:
    """`text` without passwords, tokens and keys."""
    named = _NAMED.sub(lambda match: f"{match[1]}***", text)
    return _BARE.sub(lambda match: f"{match[1] or match[2]}***", named)


def _find_logs(folder: Path, since: float) -> Iterator[Path]:
    left = _ENTRIES
    device = folder.stat().st_dev
    for place, folders, files in os.walk(folder):
        left -= len(folders) + len(files)
        if left < 0:
            return
        # Pools and stores have many files, and no logs.
        folders[:] = [name for name in folders if _device_of(Path(place, name)) == device]
        for name in files:
            path = Path(place, name)
            if (name == "log" or name.endswith(".log")) and _written(path) >= since:
                yield path


def _device_of(path: Path) -> int | None:
    try:
        return path.lstat().st_dev
    except OSError:  # gone meanwhile, or a FUSE mount whose process has ended
        return None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINES * LINE_LENGTH))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"not to be had: {error}"


def _device_states(folders: list[Path]) -> Iterator[tuple[str, str]]:
    left = [one for folder in folders for one in leftovers.find(folder)]
    yield "processes, mounts and loop devices of the run", "\n".join(dict.fromkeys(left))
    if os.geteuid() == 0:
        yield "device mapper", _ask("dmsetup", "ls", "--tree")
        columns = "lv_name,vg_name,lv_attr,lv_size,data_percent"
        yield "logical volumes", _ask("lvs", "-a", "-o", columns)
    lio = Path("/sys/kernel/config/target")
    yield "LIO", "\n".join(str(path.relative_to(lio)) for path in sorted(lio.glob("iscsi/iqn*/*")))
    sessions = Path("/sys/class/iscsi_session").glob("session*/targetname")
    yield "sessions of the kernel's initiator", "\n".join(path.read_text() for path in sessions)
    for socket in folders[0].glob("**/tgtd.0"):
        asked = ["--lld", "iscsi", "--mode", "target", "--op", "show"]
        environment = {"TGT_IPC_SOCKET": str(socket.with_suffix(""))}
        yield f"targets of {socket}", _ask("tgtadm", *asked, **environment)


def _ask(command: str, *arguments: str, **environment: str) -> str:
    """What the command says; nothing where it is not installed, or has nothing to ask."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = shutil.which(command, path=path)
    if found is None:
        return ""
    try:
        done = subprocess.run(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **environment, "PATH": path},
            timeout=_COMMAND_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{command} did not answer within {_COMMAND_LIMIT} s"
    return "" if done.returncode else done.stdout
