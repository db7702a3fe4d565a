"""tools/test --thorough: everything, in every way, for hours; started again, it goes on.

Each file with tests is a piece of work of its own; the files of tests/vm are so twice, once in
User Mode Linux and once in QEMU, on the kernel that operators run. What was done is kept in
.cache/thorough, test by test, until all is done or the code is another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.testing import levels, machines
from tools.testing.durations import read_durations, seconds_of
from tools.testing.levels import HOST, Choice, Job
from tools.testing.records import Ended, Failed, Reader, Result, level_of
from tools.testing.report import Report, clock, summary
from tools.testing.running import TOP, Run, a_run, watch

FOLDER = TOP / ".cache" / "thorough"
ENVIRONMENT = {"LUNR_THOROUGH": "1", "LUNR_CRASH_STEPS": "all"}
MACHINES = ("uml", "qemu")
#: So many files at once, and so many of them in VMs, which need memory.
AT_ONCE = (os.cpu_count() or 1) + 1
VMS_AT_ONCE = 2
#: Seconds that a file may take in a VM.
A_DAY = 24 * 3600


@dataclass(frozen=True)
class Work:
    """A file with tests, and where it runs: "host" or a machine of tools/vm."""

    where: str
    file: str

    @property
    def name(self) -> str:
        return f"{self.where} {self.file}"

    @property
    def level(self) -> str:
        """What the table calls it."""
        return f"vm in {self.where}" if self.where in MACHINES else level_of(self.file)


def all_work(chosen: Sequence[str], files: Iterable[str]) -> list[Work]:
    """What there is to do for the levels chosen, given all files with tests."""
    works = []
    for file in files:
        level = level_of(file)
        if level in chosen:
            places = MACHINES if level == "vm" else ("host",)
            works += [Work(place, file) for place in places]
    return works


def revision() -> str:
    """What tells this code from another: the commit, and what is not committed."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=TOP, capture_output=True, check=True).stdout

    digest = hashlib.sha256(git("diff", "HEAD"))
    for name in git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0"):
        if name:
            digest.update(name + b"\0" + (TOP / os.fsdecode(name)).read_bytes())
    return f"{git('rev-parse', 'HEAD').decode().strip()}+{digest.hexdigest()[:12]}"


class State:
    """What was done already, kept in a folder."""

    def __init__(self, folder: Path, code: str, insist: bool = False) -> None:
        """Begin afresh in `folder` if all was done there, or for other code unless we `insist`."""
        self.folder = folder
        self._path = folder / "state.json"
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.is_resumed = bool(kept) and (insist or kept["code"] == code)
        if not self.is_resumed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            kept = {"code": code, "done": []}
        self._code: str = kept["code"]
        self.done: set[str] = set(kept["done"])
        self._save()

    def folder_of(self, work: Work) -> Path:
        """Where the records of `work` are."""
        folder = self.folder / work.where / work.file.replace("/", "-").removesuffix(".py")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record_of(self, work: Work) -> Path:
        return self.folder_of(work) / "record.jsonl"

    def finish(self, work: Work) -> None:
        """Keep that `work` is done."""
        self.done.add(work.name)
        self._save()

    def forget(self) -> None:
        """All is done: the next run begins afresh. The records stay until then."""
        self._path.unlink()

    def _save(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"code": self._code, "done": sorted(self.done)}, indent=1))
        fresh.replace(self._path)

    def result_of(self, work: Work) -> Result:
        """How the tests of `work` ended, each the last time that it ran."""
        last: dict[str, Ended] = {}
        for record in Reader(self.record_of(work)).read():
            if isinstance(record, Ended):
                last[record.id] = record
        result = Result()
        for ended in last.values():
            result.add(ended)
        return result


class Session:
    """The work that is left, and that which is being done."""

    def __init__(
        self, run: Run, choice: Choice, report: Report, state: State, works: list[Work]
    ) -> None:
        self._run, self._choice, self._report, self._state = run, choice, report, state
        self._left = [work for work in works if work.name not in state.done]
        self._total = len(works)
        self._jobs: dict[Work, Job] = {}

    def step(self) -> bool:
        for work, job in list(self._jobs.items()):
            has_ended = job.program.code() is not None
            for record in job.read():
                if isinstance(record, Failed):
                    self._report.hear(work.where, record)
            if has_ended:
                del self._jobs[work]
                self._end(work, job)
        while len(self._jobs) < AT_ONCE and (following := self._next()):
            self._left.remove(following)
            self._jobs[following] = self._start(following)
        return bool(self._jobs)

    def _next(self) -> Work | None:
        vms = sum(work.where in MACHINES for work in self._jobs)
        for work in self._left:
            if work.where not in MACHINES or vms < VMS_AT_ONCE:
                return work
        return None

    def _start(self, work: Work) -> Job:
        record = self._state.record_of(work)
        argv = levels.pytest(record, self._choice)
        argv += [f"--skip-recorded={record}", work.file, *self._choice.arguments]
        name = f"{work.where}-{self._state.folder_of(work).name}"
        if work.where in MACHINES:
            start = ["tools/vm", "run", "--machine", work.where, *machines.DISKS]
            start += ["--timeout", str(A_DAY), "--share", str(record.parent), "--"]
            argv = [*start, *argv, "-p", "no:cacheprovider", "-o", f"timeout={machines.TEST_LIMIT}"]
        job = Job(work.level, work.name, self._run.start(name, argv, ENVIRONMENT), record)
        job.skip()  # what was told in earlier runs
        return job

    def _end(self, work: Work, job: Job) -> None:
        shutil.copy(job.program.log, self._state.folder_of(work) / "log")
        result = self._state.result_of(work)
        if failure := job.failure():
            self._report.fail(work.level, f"{work.file}: {failure}", job.program.tail())
        else:
            self._state.finish(work)
        done = self._total - len(self._left) - len(self._jobs)
        self._report.say(f"{row(work, result)}  ({done} of {self._total})")


def row(work: Work, result: Result) -> str:
    """The line of the table for a file."""
    counts = f"{result.passed:>5}{len(result.failed):>5}{len(result.skipped):>5}"
    return f"{counts}{clock(result.seconds):>9}  {work.name}"


def sum_up(state: State, works: Iterable[Work], report: Report) -> Mapping[str, Result]:
    """The results by level, with those of earlier runs; what failed and is no test is kept."""
    results: dict[str, Result] = {}
    for work in works:
        one = state.result_of(work)
        into = results.setdefault(work.level, Result())
        prefix = f"{work.where}: " if work.where in MACHINES else ""
        into.merge(one, prefix)
    for level, result in report.results.items():
        results.setdefault(level, Result()).failed.update(result.failed)
    return results


def run_thoroughly(choice: Choice, insist: bool) -> int:
    """Run all that was chosen and was not done yet; the exit code."""
    chosen = [level for level in choice.levels if level in (*HOST, "vm")]
    known = read_durations(levels.DURATIONS)
    files = sorted(path.relative_to(TOP).as_posix() for path in TOP.glob("tests/**/test_*.py"))
    works = all_work(chosen, sorted(files, key=lambda file: -seconds_of(file, known)))
    if "vm" in chosen and (
        code := subprocess.run(["tools/setup", "--vm"], cwd=TOP, check=False).returncode
    ):
        print(f"tools/test: tools/setup --vm ended with {code}, see above")
        return 1
    state = State(FOLDER, revision(), insist)
    report = Report()
    report.say(
        f"{len(works)} files, {sum(work.name in state.done for work in works)} of them done; "
        f"what was done is kept in {FOLDER.relative_to(TOP)}"
    )
    report.say(" pass fail skip  seconds  where, file")
    try:
        with a_run() as run:
            watch(Session(run, choice, report, state, works).step)
    except SystemExit:
        report.say("ended in the middle; started again, it goes on from here")
        raise
    finally:
        results = sum_up(state, works, report)
        print(summary(results, reasons=report.reasons), flush=True)
    if all(work.name in state.done for work in works):
        state.forget()
    return 1 if any(result.failed for result in results.values()) else 0
