"""The backup engine beside borg, restic and cp: the same work on the same file in one run.

usage: tools/bench engine [--size MiB] [--rounds N] [--folder DIR]

Every figure is the median of N rounds (5), in which the programs take turns to
be first, after one that is not counted. The source is a file of random data in
the page cache. Where the disk is the bottleneck it is measured, not the programs:
with --folder on a tmpfs it is out of it.

"1 % written" is a backup after 1 % of the 32 KiB blocks were rewritten at random;
"stored" is what the repository grew by, and "read" what was read of the source,
in bytes changed. "Known" is the same with a source that knows its changes, as
snapshots do, and the unchanged one also with 1 TiB of holes behind the data.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import FileSource
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.files import FileStore

MIB = 1 << 20
BLOCK = 32 << 10
#: Seconds of rest before each work: virtual disks are fast for a moment after
#: they had nothing to do, and what comes second must have that moment too.
_SETTLE = 4.0
ENGINE = [sys.executable, "-m", "lunr.backup.cli"]
#: This file, as a program that saves with a source that knows its changes.
KNOWING = [sys.executable, __file__, "--save-changes"]
ENV = {
    **os.environ,
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    "RESTIC_PASSWORD": "benchmark",
    "LC_ALL": "C",
}

#: work -> program -> (seconds, peak RSS in MiB) of each round
Times = dict[str, dict[str, list[tuple[float, float]]]]

WORKS = (
    "full",
    "unchanged",
    "unchanged, known",
    "the same, 1 TiB",
    "1 % written",
    "1 % written, known",
    "restore",
    "restore of that",
)


class Bench:
    """One folder with a source and the stores of all programs."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.source = folder / "source"
        self.times: Times = {}
        #: program -> bytes that its repository grew by for each byte written.
        self.stored: dict[str, float] = {}
        self.read: dict[str, float] = {}
        with self.source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())

    def time(
        self, work: str, program: str, argv: list[str], repository: Path | None = None
    ) -> None:
        """Run `argv` and note how long it took and what memory it had at most.

        The source, or the `repository` that is read, is in the page cache, whoever came before
        and however it was written.
        """
        os.sync()
        time.sleep(_SETTLE)
        for path in [self.source] if repository is None else repository.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    for _ in range(self.size // MIB):
                        file.read(MIB)
        start = time.monotonic()
        process = subprocess.Popen(
            argv,
            env={**ENV, "BORG_BASE_DIR": str(self.folder / "borg-home")},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if process.returncode:
            raise SystemExit(f"{argv}: {said.decode(errors='replace')}")
        figures = self.times.setdefault(work, {}).setdefault(program, [])
        figures.append((seconds, usage.ru_maxrss / 1024))

    @contextmanager
    def fresh(self, name: str) -> Iterator[Path]:
        """A path below the folder at which nothing is, before and after."""
        path = self.folder / name
        yield path
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def write(self, seed: int) -> list[list[int]]:
        """Rewrite 1 % of the blocks; which ranges these are."""
        chance = random.Random(seed)
        count = self.size // BLOCK
        ranges = []
        with self.source.open("r+b") as file:
            for block in sorted(chance.sample(range(count), count // 100)):
                file.seek(block * BLOCK)
                file.write(os.urandom(BLOCK))
                ranges.append([block * BLOCK, (block + 1) * BLOCK])
        return ranges

    @contextmanager
    def growth(self, repository: Path, program: str, ranges: list[list[int]]) -> Iterator[None]:
        """Note by how much `repository` grows, for each byte in `ranges`."""
        before = _bytes_in(repository)
        yield
        written = sum(end - start for start, end in ranges)
        self.stored[program] = (_bytes_in(repository) - before) / written

    def lunr(self) -> None:
        with self.fresh("lunr-store") as store, self.fresh("lunr-out") as out:
            common = ["--store", f"files:{store}"]
            save = [*ENGINE, "save", str(self.source), *common]
            restore = [*ENGINE, "restore"]
            self.time("full", "lunr", [*save, "--id", "one"])
            self.time("unchanged", "lunr", [*save, "--id", "two", "--parent", "one"])
            self.time("restore", "lunr", [*restore, "two", str(out), *common], store)
            out.unlink()
            self.knowing("unchanged, known", store, "same", "two", [])
            os.truncate(self.source, self.size + (1 << 40))
            self.knowing("grown", store, "large", "same", [])
            self.knowing("the same, 1 TiB", store, "larger", "large", [])
            os.truncate(self.source, self.size)
            ranges = self.write(1)
            with self.growth(store, "lunr", ranges):
                self.time("1 % written", "lunr", [*save, "--id", "three", "--parent", "two"])
            ranges = self.write(2)
            with self.growth(store, "lunr, known", ranges):
                self.knowing("1 % written, known", store, "four", "three", ranges)
            root = json.loads((store / "default" / "roots" / "four").read_bytes())
            written = sum(end - start for start, end in ranges)
            self.read["lunr, known"] = root["statistics"]["bytes_read"] / written
            self.time("restore of that", "lunr", [*restore, "four", str(out), *common], store)

    def knowing(
        self, work: str, store: Path, backup_id: str, parent_id: str, ranges: list[list[int]]
    ) -> None:
        """Save with a source that knows that only `ranges` changed."""
        order = self.folder / "order.json"
        order.write_text(
            json.dumps([str(self.source), str(store / "default"), backup_id, parent_id, ranges])
        )
        self.time(work, "lunr", [*KNOWING, str(order)])

    def borg(self) -> None:
        with self.fresh("borg-repo") as repo, self.fresh("borg-out") as out:
            self.time("init", "borg", ["borg", "init", "-e", "none", str(repo)])
            # The files cache would not look at an unchanged file at all; a
            # block device, which this stands for, has none.
            create = ["borg", "create", "-C", "none", "--chunker-params", "fixed,4194304"]
            create += ["--files-cache", "disabled"]
            self.time("full", "borg", [*create, f"{repo}::one", "source"])
            self.time("unchanged", "borg", [*create, f"{repo}::two", "source"])
            out.mkdir()
            extract = ["env", "-C", str(out), "borg", "extract"]
            self.time("restore", "borg", [*extract, f"{repo}::two"], repo)
            with self.growth(repo, "borg", self.write(1)):
                self.time("1 % written", "borg", [*create, f"{repo}::three", "source"])

    def restic(self) -> None:
        with self.fresh("restic-repo") as repo, self.fresh("restic-out") as out:
            common = ["restic", "-r", str(repo), "--cache-dir", str(self.folder / "restic-cache")]
            self.time("init", "restic", [*common, "init"])
            backup = [*common, "backup", "--force", "source"]
            self.time("full", "restic", backup)
            self.time("unchanged", "restic", backup)
            restore = [*common, "restore", "latest", "--target", str(out)]
            self.time("restore", "restic", restore, repo)
            with self.growth(repo, "restic", self.write(1)):
                self.time("1 % written", "restic", backup)

    def cp(self) -> None:
        with self.fresh("copy") as copy:
            sync = ["sh", "-c", 'cp --reflink=never source "$1" && sync "$1"', "sh", str(copy)]
            self.time("full", "cp and sync", sync)

    def table(self) -> Iterator[str]:
        """The lines of the report."""
        yield f"{'work':<20}{'program':<14}{'seconds':>9}{'MiB/s':>9}{'MiB RSS':>9}{'lunr is':>10}"
        for work in WORKS:
            ours = statistics.median(s for s, _ in self.times[work]["lunr"])
            for program, figures in self.times[work].items():
                seconds = statistics.median(s for s, _ in figures)
                memory = max(m for _, m in figures)
                ratio = f"{seconds / ours:.2f}x" if program != "lunr" else ""
                speed = self.size / MIB / seconds
                figures_shown = f"{seconds:>9.2f}{speed:>9.0f}{memory:>9.0f}{ratio:>10}"
                yield f"{work:<20}{program:<14}{figures_shown}"
        for program, factor in self.stored.items():
            yield f"1 % written: {program} stored {factor:.2f} times what was written"
        for program, factor in self.read.items():
            yield f"1 % written: {program} read {factor:.2f} times what was written"


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def save_changes(order: Path) -> None:
    """Save as `order` says: a JSON list of source, folder, id, parent's id and changed ranges."""
    source, folder, backup_id, parent_id, ranges = json.loads(order.read_text())
    store = FileStore(Path(folder))
    repository = Repository(store, derive.derive(derive.PUBLIC_MASTER, "default"))
    volume_id = repository.load_root(parent_id).volume_id
    with FileSource(Path(source)) as opened:
        save(
            repository,
            opened,
            Backup(backup_id, volume_id, "2026-11-23T00:00:00Z", parent_id, changed=ranges),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024, help="MiB of random data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go (a temporary folder)")
    parser.add_argument("--save-changes", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_changes:
        save_changes(arguments.save_changes)
        return
    with tempfile.TemporaryDirectory(prefix="lunr-bench-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), arguments.size * MIB)
        programs: list[Callable[[], None]] = [bench.lunr, bench.cp]
        for program in (bench.borg, bench.restic):
            if shutil.which(program.__name__):
                programs.append(program)
            else:
                print(f"{program.__name__} is not installed: left out.")
        for number in range(arguments.rounds + 1):
            for program in programs:
                program()
            if number == 0:
                bench.times.clear()
            programs.append(programs.pop(0))
            print(f"round {number} of {arguments.rounds}", file=sys.stderr)
    for line in bench.table():
        print(line)
    print("(RSS is the highest of all rounds)")


if __name__ == "__main__":
    main()
