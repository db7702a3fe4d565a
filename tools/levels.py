"""Runs the levels of tests and sums them up; tools/test starts it.

usage: tools/test [LEVEL…] [-- PYTEST ARGUMENT…]

  style       ruff (format and rules) and mypy
  unit        tests/unit: no process is started, no network
  functional  tests/functional: several modules together, on loopback
  system      tests/system: real tgtd, XFS, Swift, PostgreSQL; some need root
  crash       tests/crash: kill -9 of any part in the middle of any kind of job
  vm          tests/vm: LVM, LIO and open-iscsi, in three VMs at once (tools/vm)

Without LEVEL, all of them. The last line counts the tests; the exit code is 0
when none failed and no level was without a test.

  tools/test unit -- -k ids -x
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

TOP = Path(__file__).resolve().parents[1]
BIN = TOP / ".venv" / "bin"
LEVELS = ("style", "unit", "functional", "system", "crash", "vm")
#: What tests/vm/conftest.py expects.
DISKS = ["--disk", "8G", "--disk", "4G,plain", "--disk", "1G"]
#: Seconds after which the level "vm" counts as failed: nearly three times what it takes on a
#: machine that does nothing else.
VM_LIMIT = 2400
#: Seconds that one of its tests may take.
VM_TEST_LIMIT = 600
#: Whether many steps are tried of what the test of kills does, which may take hours.
IS_LONG = "LUNR_CRASH_STEPS" in os.environ
#: The files under tests/vm that two of the three VMs run; the third one runs the others. Each has
#: about a third of the work, and waits for something a third of the time.
VMS = {
    "jobs": ["service/test_main_job.py", "service/test_node.py", "storage/test_lvm_wiping.py"],
    "kills": [
        "service/test_kill.py",
        *(f"storage/test_{name}.py" for name in ("initiator", "limits", "lio", "targets")),
        *("storage/test_thin_pool.py", "storage/test_walk.py"),
    ],
}
CHECKS = {
    "ruff format": ["ruff", "format", "--check", "--quiet", "--diff", "."],
    "ruff check": ["ruff", "check", "--quiet", "."],
    "mypy lunr": ["mypy"],
    "mypy tools": ["mypy", "--package", "tools"],
}


@dataclass
class Result:
    """How the tests of one level ended."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_style() -> Result:
    """Check the form of the code."""
    result = Result()
    for name, command in CHECKS.items():
        if _run([str(BIN / command[0]), *command[1:]]):
            result.failed.append(name)
        else:
            result.passed += 1
    return result


def run_pytest(level: str, arguments: list[str]) -> Result:
    """Run the tests under tests/`level`."""
    with tempfile.TemporaryDirectory(prefix="lunr-report-") as folder:
        report = Path(folder) / "report.xml"
        code = _run([*_pytest(report), f"tests/{level}", *arguments])
        return _result(level, [code], [report])


def run_vm(arguments: list[str]) -> Result:
    """Run the tests under tests/vm in several VMs; their lines come as they are written."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lunr-report-") as name:
        reports = {vm: Path(name) / vm / "report.xml" for vm in (*VMS, "rest")}

        def run(vm: str) -> int:
            report = reports[vm]
            report.parent.mkdir()
            # So that no test hangs for ever.
            timeout = str(12 * 3600 if IS_LONG else VM_LIMIT + 300)
            start = ["tools/vm", "run", *DISKS, "--timeout", timeout, "--share", str(report.parent)]
            tests = [*_pytest(report), *files_of(vm), *_limits(), *arguments]
            return _run_beside([*start, "--", *tests], vm)

        with ThreadPoolExecutor() as together:
            codes = list(together.map(run, reports))
        result = _result("vm", codes, list(reports.values()))
    result.failed += late(time.monotonic() - began)
    return result


def _limits() -> list[str]:
    """How long a test in a VM may take, and when pytest begins none any more, but sums up."""
    session = [] if IS_LONG else [f"--session-timeout={VM_LIMIT - VM_TEST_LIMIT}"]
    return [*session, "-o", f"timeout={VM_TEST_LIMIT}"]


def files_of(vm: str) -> list[str]:
    """What pytest is to run in that VM."""
    if vm in VMS:
        return [f"tests/vm/{path}" for path in VMS[vm]]
    return ["tests/vm", *(f"--ignore=tests/vm/{path}" for paths in VMS.values() for path in paths)]


def late(seconds: float) -> list[str]:
    """What to say of the level "vm" if it took too long."""
    if IS_LONG or seconds <= VM_LIMIT:
        return []
    return [f"vm: it took {seconds:.0f} s, at most {VM_LIMIT} are for it: see docs/development.md"]


def _pytest(report: Path) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=5"]
    return [*command, f"--junitxml={report}"]


def _result(level: str, codes: list[int], reports: list[Path]) -> Result:
    """What runs of pytest, which ended with `codes`, say together."""
    result = Result()
    for report in reports:
        if report.exists():
            one = read_report(report.read_bytes())
            result.passed += one.passed
            result.failed += one.failed
            result.skipped += one.skipped
    for code in codes:
        # 5 is pytest's way to say that no test was there, 1 that one failed.
        if code not in (0, 5) and not (code == 1 and result.failed):
            result.failed.append(f"{level}: the run itself (pytest ended with {code}, see above)")
    if not result.passed and not result.failed:
        result.failed.append(f"{level}: no test ran")
    return result


def prepare_vm() -> int:
    """Fetch the VM's kernel if need be, and spare the VM what can be done faster here."""
    # Compiling Python takes minutes in there, and so does what pytest makes of it.
    _run([sys.executable, "-m", "compileall", "-q", "lunr", "tests", "tools"])
    environment = {**os.environ, "LUNR_VM": "1", "PYTHONDONTWRITEBYTECODE": ""}
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/vm"]
    # What is wrong with them is told in there.
    subprocess.run(collect, cwd=TOP, env=environment, stdout=subprocess.DEVNULL, check=False)
    return _run(["tools/setup", "--vm"])


def read_report(xml: bytes) -> Result:
    """The result that a JUnit report tells of.

    A test that fails and whose fixtures fail after it is in the report twice.
    """
    result = Result()
    failed: dict[str, None] = {}
    passed: dict[str, None] = {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}".strip(":")
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed[name] = None
        elif skip is not None:
            result.skipped.append(f"{name}: {skip.get('message', '')}")
        else:
            passed[name] = None
    result.failed = list(failed)
    result.passed = len(passed.keys() - failed.keys())
    return result


def summary(results: dict[str, Result]) -> str:
    """The table of levels, every test that failed or was skipped, and the line that counts."""
    lines = ["", f"{'level':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for level, one in results.items():
        counts = f"{one.passed:>8}{len(one.failed):>8}{len(one.skipped):>9}{one.seconds:>9.1f}"
        lines.append(f"{level:<12}{counts}")
    failed = [name for one in results.values() for name in one.failed]
    skipped = [name for one in results.values() for name in one.skipped]
    lines += [f"SKIPPED {name}" for name in skipped] + [f"FAILED  {name}" for name in failed]
    passed = sum(one.passed for one in results.values())
    return "\n".join([*lines, f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"])


def _run(command: list[str]) -> int:
    """The exit code of `command`."""
    return subprocess.run(command, cwd=TOP, stdin=subprocess.DEVNULL, check=False).returncode


def _run_beside(command: list[str], name: str) -> int:
    """The exit code of `command`, each line of whose output is told with its `name`."""
    with subprocess.Popen(
        command,
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{name}: {line}", end="", flush=True)
    return process.returncode


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").split("\n\n", 1)[1])
        return 0
    split = arguments.index("--") if "--" in arguments else len(arguments)
    levels, extra = arguments[:split] or list(LEVELS), arguments[split + 1 :]
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        print(f"tools/test: there is no level {unknown[0]}; there are {', '.join(LEVELS)}")
        return 2
    if "vm" in levels and (code := prepare_vm()):
        print(f"tools/test: tools/setup --vm ended with {code}, see above")
        return 1
    results = {}
    for level in levels:
        print(f"== {level}", flush=True)
        start = time.monotonic()
        if level == "style":
            results[level] = run_style()
        else:
            results[level] = run_vm(extra) if level == "vm" else run_pytest(level, extra)
        results[level].seconds = time.monotonic() - start
    sys.stderr.flush()
    print(summary(results), flush=True)
    return 1 if any(one.failed for one in results.values()) else 0


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    sys.exit(main(sys.argv[1:]))
