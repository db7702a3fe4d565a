"""Runs the levels of tests and sums them up; tools/test starts it.

usage: tools/test [LEVEL…] [-- PYTEST ARGUMENT…]

  style       ruff (format and rules) and mypy
  unit        tests/unit: no process is started, no network
  functional  tests/functional: several modules together, on loopback
  system      tests/system: real tgtd, XFS, Swift, PostgreSQL; some need root
  crash       tests/crash: kill -9 of any part in the middle of any kind of job
  vm          tests/vm: LVM, LIO and open-iscsi, in a VM that is started once (tools/vm)

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
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

TOP = Path(__file__).resolve().parents[1]
BIN = TOP / ".venv" / "bin"
LEVELS = ("style", "unit", "functional", "system", "crash", "vm")
#: What tests/vm/conftest.py expects; and no test hangs for ever.
VM = ["--disk", "4G", "--disk", "4G,plain", "--disk", "1G", "--timeout", "3000"]
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
        command = [sys.executable, "-m", "pytest", f"tests/{level}", "-q", "--tb=short"]
        command += ["--durations=5", f"--junitxml={report}", *arguments]
        if level == "vm":
            command = ["tools/vm", "run", *VM, "--share", folder, "--", *command]
            command += ["-o", "timeout=600"]  # all is emulated
        code = _run(command)
        result = read_report(report.read_bytes()) if report.exists() else Result()
    if code == 5:  # pytest's way to say that no test was there
        result.failed.append(f"{level}: no test ran")
    elif code and not result.failed:
        result.failed.append(f"{level}: the run itself (pytest ended with {code}, see above)")
    elif not result.passed and not result.failed:
        result.failed.append(f"{level}: no test ran, all were skipped")
    return result


def prepare_vm() -> int:
    """Fetch the VM's kernel if need be, and spare the VM what can be done faster here."""
    # Compiling Python takes minutes in there.
    _run([sys.executable, "-m", "compileall", "-q", "lunr", "tests", "tools"])
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
    done = subprocess.run(command, cwd=TOP, stdin=subprocess.DEVNULL, check=False)
    return done.returncode


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
        results[level] = run_style() if level == "style" else run_pytest(level, extra)
        results[level].seconds = time.monotonic() - start
    sys.stderr.flush()
    print(summary(results), flush=True)
    return 1 if any(one.failed for one in results.values()) else 0


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    sys.exit(main(sys.argv[1:]))
