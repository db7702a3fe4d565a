"""Runs the levels of tests and sums them up.

usage: tools/test [OPTION…] [LEVEL…] [-- PYTEST ARGUMENT…]
       tools/test --changed [REVISION] [LEVEL…]
       tools/test --thorough [--resume] [LEVEL…]

  style       ruff (format and rules) and mypy
  unit        tests/unit: no process is started, no network
  functional  tests/functional: several modules together, on loopback
  system      tests/system: real tgtd, XFS, Swift, PostgreSQL; some need root
  crash       tests/crash: kill -9 of any part in the middle of any kind of job
  vm          tests/vm: LVM, LIO and open-iscsi, in several VMs (tools/vm)

Without LEVEL, all of them, side by side. What fails is told at once. The last
line counts the tests; the exit code is 0 when none failed and no level was
without a test.

  --random [SEED]   run files, and tests in them, in random order
  --changed [REVISION]
                    style, and the tests that the changed files reach by imports, as
                    many as take less than a minute; what is left out is named. What
                    changed since REVISION; without one, since this branch left its
                    upstream (main); else what is not committed, or the last commit
  --thorough        all that takes long as well: every step of every table of kills,
                    more examples, tests/vm on both kernels. It takes hours, says how
                    each file went, and goes on where it was when it is started again;
                    for other code it begins afresh, unless --resume is said
  -v                show all that pytest, ruff and mypy write, as they write it

  tools/test unit -- -k ids -x
"""

from __future__ import annotations

import random
import sys
import time

from tools.testing import LEVELS, changed, durations, levels, machines, thorough
from tools.testing.levels import Choice, Job, StyleCheck
from tools.testing.report import Report, summary
from tools.testing.running import Program, Run, a_run, watch


class WrongUse(Exception):
    """What is wrong with the arguments."""


def parse(arguments: list[str]) -> Choice:
    """What the arguments ask for.

    Raises:
        WrongUse: nobody knows what.
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    mine, rest = arguments[:split], arguments[split + 1 :]
    choice = Choice([], rest)
    chosen: list[str] = []
    while mine:
        word = mine.pop(0)
        match word:
            case "--random":
                given = mine and mine[0].isdigit()
                choice.seed = int(mine.pop(0)) if given else random.randrange(1 << 32)
            case "--thorough":
                choice.is_thorough = True
            case "--resume":
                choice.resumes = True
            case "--changed":
                is_revision = mine and mine[0] not in LEVELS and not mine[0].startswith("-")
                select_changed(choice, mine.pop(0) if is_revision else None)
            case "-v" | "--verbose":
                choice.is_verbose = True
            case _ if word in LEVELS:
                chosen.append(word)
            case _ if word.startswith("-"):
                raise WrongUse(f"there is no option {word}; see tools/test --help")
            case _:
                raise WrongUse(f"there is no level {word}; there are {', '.join(LEVELS)}")
    choice.levels = [level for level in LEVELS if level in chosen or not chosen]
    return choice


def select_changed(choice: Choice, revision: str | None) -> None:
    """Choose the files with tests that what changed reaches."""
    try:
        selection = changed.select_changed(revision)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    choice.files, choice.left_out = selection.chosen, selection.left_out
    names = ", ".join(selection.changed[:6]) + (", …" if len(selection.changed) > 6 else "")
    print(
        f"{len(selection.changed)} files changed since {selection.since[:12]}: {names}\n"
        f"they reach {len(selection.chosen) + len(selection.left_out)} files with tests; "
        f"{len(selection.chosen)} are run",
        flush=True,
    )


class Session:
    """All that runs side by side, looked at now and then."""

    def __init__(self, run: Run, choice: Choice, report: Report) -> None:
        self._run, self._choice, self._report = run, choice, report
        self._checks: list[StyleCheck] = []
        self._jobs: list[Job] = []
        self._preparation: machines.Preparation | None = None
        self._queue: machines.Queue | None = None
        self._shown: dict[Program, int] = {}

    def start(self) -> None:
        if "vm" in self._choice.levels and self._choice.paths("vm"):
            self._preparation = machines.Preparation(self._run, self._choice)
        host = levels.start_host(self._run, self._choice)
        if host is not None:
            self._jobs.append(host)
        if "style" in self._choice.levels:
            self._checks = levels.start_style(self._run)

    def step(self) -> bool:
        """Look what happened; whether there is more to come."""
        self._look_at_checks()
        self._look_at_machines()
        self._look_at_jobs()
        queue = f", {self._queue.waiting} groups of the VM wait" if self._queue else ""
        self._report.progress(queue)
        return bool(self._checks or self._jobs or self._preparation)

    def _look_at_checks(self) -> None:
        for check in list(self._checks):
            code = check.program.code()
            if code is None:
                continue
            self._checks.remove(check)
            if code:
                self._report.fail("style", check.name, check.program.tail(200))
            else:
                self._report.result("style").passed += 1
            self._report.result("style").span(time.time() - check.program.seconds(), time.time())

    def _look_at_machines(self) -> None:
        if self._preparation is not None and self._preparation.is_over():
            preparation, self._preparation = self._preparation, None
            for record in preparation.failures():
                self._report.hear("vm", record)
            reason = preparation.reason()
            if reason and preparation.is_lacking:
                self._report.result("vm").skipped.append(("vm", f"needs a VM: {reason}"))
            elif reason:
                self._report.fail("vm", "there is no VM", reason)
            else:
                self._queue = machines.Queue(self._run, self._choice, preparation.files())
        if self._queue is not None:
            self._jobs += self._queue.fill()

    def _look_at_jobs(self) -> None:
        for job in list(self._jobs):
            has_ended = job.program.code() is not None
            self._show(job.program)
            for record in job.read():
                self._report.hear(job.name, record)
            if has_ended:
                self._jobs.remove(job)
                if failure := job.failure():
                    self._report.fail(job.level, failure, job.program.tail())

    def _show(self, program: Program) -> None:
        if self._choice.is_verbose:
            text = program.log.read_bytes()[self._shown.get(program, 0) :]
            self._shown[program] = self._shown.get(program, 0) + len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()


def run_all(choice: Choice) -> int:
    """Run what was chosen, and say how it went; the exit code."""
    report = Report()
    if choice.seed is not None:
        report.say(f"in random order: tools/test --random {choice.seed}")
    try:
        with a_run() as run:
            session = Session(run, choice, report)
            session.start()
            watch(session.step)
    except SystemExit as error:
        report.say(f"ended by a signal ({error.code})")
        report.say_running()
        print(summary(report.results, reasons=report.reasons), flush=True)
        raise
    if not choice.arguments and choice.files is None:  # whole files
        durations.remember(levels.DURATIONS, report.results.values())
    if choice.files is None:
        report.require(choice.levels)
    ordered = {level: report.results[level] for level in LEVELS if level in report.results}
    print(summary(ordered | report.results, choice.left_out, report.reasons), flush=True)
    return 1 if report.has_failed else 0


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments[: [*arguments, "--"].index("--")]):
        print((__doc__ or "").split("\n\n", 1)[1])
        return 0
    try:
        choice = parse(arguments)
    except WrongUse as error:
        print(f"tools/test: {error}")
        return 2
    if choice.is_thorough:
        return thorough.run_thoroughly(choice, choice.resumes)
    return run_all(choice)
