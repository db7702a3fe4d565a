"""How long the requests of a guest take before, during and after live backups of it.

A real guest writes and calls fsync all the time. QEMU counts how long each write and each flush
of it takes, from the device's side; that is asked for ten times a second. The store takes so many
MiB a second, so that the backups last long enough to be seen.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lunr.backup.keys.derive import PUBLIC_MASTER, derive
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.common.units import MIB
from lunr.live.backup.backup import Options, backup
from lunr.live.qemu.qmp import Monitor
from tools.virtual.writer import guest as guests
from tools.virtual.writer.guest import Guest

_EVERY = 0.1
_RATE = 4 * MIB
_DATA = 32 * MIB
_QUIET = 8.0


@dataclass(frozen=True)
class Sample:
    """Means of one interval: its end (seconds), and milliseconds a write and a flush."""

    at: float
    write: float | None
    flush: float | None


class Sampler(threading.Thread):
    """Asks a machine about the requests of one disk, until it is told to stop."""

    def __init__(self, monitor: Monitor, disk: str) -> None:
        super().__init__(daemon=True)
        self._monitor, self._disk = monitor, disk
        self.samples: list[Sample] = []
        self.over = threading.Event()
        self.began = time.monotonic()

    def _stats(self) -> dict[str, Any]:
        for block in self._monitor.execute("query-blockstats"):
            if f"/{self._disk}/" in block.get("qdev", ""):
                return dict(block["stats"])
        raise LookupError(self._disk)

    def run(self) -> None:
        before = self._stats()
        while not self.over.wait(_EVERY):
            now = self._stats()

            def mean(kind: str, one: dict[str, Any] = before, two: dict[str, Any] = now) -> Any:
                count = two[f"{kind}_operations"] - one[f"{kind}_operations"]
                spent = two[f"{kind}_total_time_ns"] - one[f"{kind}_total_time_ns"]
                return spent / count / 1e6 if count else None

            at = time.monotonic() - self.began
            self.samples.append(Sample(at, mean("wr"), mean("flush")))
            before = now


def _disk(path: Path, folder: Path) -> Path:
    """A disk with an ext4 that holds what a full backup has to store."""
    folder.mkdir()
    with Path("/dev/urandom").open("rb") as noise:
        (folder / "noise").write_bytes(noise.read(_DATA))
    with path.open("wb") as file:
        file.truncate(guests.SIZE)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-d", str(folder), str(path)], check=True)
    return path


def measure(folder: Path, plot: Path | None, console: Console) -> None:
    """Two backups, a full one and an incremental one, and the time around them."""
    folder.mkdir()
    monitor = folder / "monitor"
    disks = _disk(folder / "a.raw", folder / "content"), guests.make_disk(folder / "b.raw")
    extra = ("-qmp", f"unix:{monitor},server=on,wait=off")
    guest = Guest(guests.make_initramfs(folder), *disks, extra)
    store = open_store(f"files:{folder}/store", "bench", limit=_RATE)
    repository = Repository(store, derive(PUBLIC_MASTER, "bench"))
    spans: list[tuple[str, float, float]] = []
    try:
        guest.start()
        with Monitor.open(monitor) as second:
            sampler = Sampler(second, "a")
            sampler.start()
            for title in ("full", "incremental"):
                time.sleep(_QUIET)
                began = time.monotonic() - sampler.began
                with Monitor.open(guest.qmp) as first:
                    backup(repository, first, Options(scratch=folder))
                spans.append((title, began, time.monotonic() - sampler.began))
            time.sleep(_QUIET)
            sampler.over.set()
            sampler.join()
    finally:
        guest.end()
        store.close()
    console.print(_table(sampler.samples, spans))
    if plot is not None:
        _draw(sampler.samples, spans, plot)


def _table(samples: list[Sample], spans: list[tuple[str, float, float]]) -> Table:
    table = Table("means of 0.1 s", "write: median", "most", "flush: median", "most")
    phases = [("before", 0.0, spans[0][1])]
    for number, (title, began, ended) in enumerate(spans):
        phases.append((f"during the {title} backup", began, ended))
        until = spans[number + 1][1] if number + 1 < len(spans) else float("inf")
        phases.append(("after it", ended, until))
    for title, began, ended in phases:
        cells = []
        for kind in ("write", "flush"):
            found = [getattr(one, kind) for one in samples if began <= one.at < ended]
            found = [value for value in found if value is not None]
            if found:
                cells += [f"{statistics.median(found):.2f} ms", f"{max(found):.1f} ms"]
            else:
                cells += ["", ""]
        table.add_row(title, *cells)
    return table


def _draw(samples: list[Sample], spans: list[tuple[str, float, float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lunr"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3))
    for kind, label in (("flush", "a flush"), ("write", "a write")):
        found = [(one.at, value) for one in samples if (value := getattr(one, kind)) is not None]
        axes.plot(*zip(*found, strict=True), linewidth=0.8, label=label)
    for title, began, ended in spans:
        axes.axvspan(began, ended, color="0.88")
        axes.annotate(
            title,
            ((began + ended) / 2, 0.97),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=8,
        )
    axes.set(xlabel="seconds", ylabel="ms, mean of 0.1 s", yscale="log")
    axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
