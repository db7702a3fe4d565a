"""The service in the VM: an API in a process of its own, and a node on LVM that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
from rich.console import Console

from lunr.client import Client
from lunr.up import NODE, Service, Settings
from tests.support.initiator import sh
from tests.support.services import CHECKOUT
from tests.support.volume_groups import volume_group
from tests.support.waiting import free_port, wait_until

GROUP = "lunr-test"
OVER = ("DONE", "FAILED", "CANCELLED")
#: Emulated machines are slow.
LONG = 240.0


class Node:
    """The storage node of `service`, forked by a nursery."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.folder = folder
        self.pid = 0
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery", str(service.config), str(folder)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def start(self) -> None:
        self.pid = int(self._ask("start"))

    def doom(self, kind: str, step: int) -> None:
        """Have the node die just before that step of the next job of that kind."""
        (self.folder / "killed").unlink(missing_ok=True)
        (self.folder / "doom").write_text(f"{kind} {step}")

    def is_dead(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def bury(self) -> str:
        """What it was about to do when it died; then it is alive again."""
        status = int(self._ask("wait"))
        assert os.WIFSIGNALED(status), f"the node ended by itself ({status}): {self.log()}"
        (self.folder / "doom").unlink()
        return (self.folder / "killed").read_text()

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "storage.log").read_text()[-3000:]

    def stop(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            self._ask("wait")
        self._nursery.stdin.close()  # type: ignore[union-attr]
        self._nursery.wait(10)

    def _ask(self, order: str) -> str:
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(order + "\n")
        self._nursery.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._nursery.stdout is not None
        return self._nursery.stdout.readline().strip()


class World:
    """An API, and a node on LVM that dies again and again."""

    def __init__(self, service: Service, node: Node, client: Client) -> None:
        self.service, self.node, self.client = service, node, client
        #: (kind, step, what the step was): where the node was killed.
        self.deaths: list[tuple[str, int, str]] = []

    def start(self) -> None:
        """Start the node, and wait until volumes can be placed on it."""
        self.node.start()
        wait_until(self._is_ready, LONG, "the node", 0.2)

    def _is_ready(self) -> bool:
        assert not self.node.is_dead(), f"the node ended by itself: {self.node.log()}"
        return self.client.admin.nodes.get(NODE).status == "ACTIVE"

    def do(self, kind: str, step: int, begin: Callable[[], object]) -> bool:
        """Have the node killed at that step of the job that `begin` begins; whether it was."""
        self.node.doom(kind, step)
        begin()
        wait_until(lambda: self.node.is_dead() or self.is_idle(), LONG, f"{kind} {step}", 0.1)
        if not self.node.is_dead():
            return False
        self.deaths.append((kind, step, self.node.bury()))
        print("killed", *self.deaths[-1], flush=True)
        self.node.start()
        wait_until(self.is_idle, LONG, f"the end of {kind}, killed before step {step}", 0.2)
        return True

    def is_idle(self) -> bool:
        return all(job.status in OVER for job in self.client.jobs.list(limit=5))

    def check(self) -> None:
        """Every record is final and fine, and on the node is just what they say."""
        where = f"after {self.deaths[-1:]}"
        volumes = list(self.client.volumes.list())
        snapshots = list(self.client.snapshots.list())
        exported = {v.id for v in volumes if v.export_status is not None}
        assert {v.status for v in volumes} <= {"ACTIVE"}, f"{where}: {volumes}"
        assert {v.export_status for v in volumes} <= {None, "ATTACHED"}, f"{where}: {volumes}"
        assert {s.status for s in snapshots} <= {"AVAILABLE"}, f"{where}: {snapshots}"
        assert {b.status for b in self.client.backups.list()} <= {"AVAILABLE"}, where
        expected = {f"volume {v.id}" for v in volumes} | {f"snapshot {s.id}" for s in snapshots}
        deadline = time.monotonic() + 30  # what was half made, or used last, goes behind
        while (found := roles()) != expected or stray_mappings() or self._shown():
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert found == expected, f"{where}: {found - expected} too much, no {expected - found}"
        of = references()
        assert len(of) == len(set(of)), f"{where}: {of}"
        assert set(of) <= {v.id for v in volumes}, f"{where}: {of}"
        assert stray_mappings() == [], where
        assert self.exported() == exported, where
        assert self._shown() == [], where
        assert suspended() == [], where

    def _shown(self) -> list[str]:
        """What of backups and restored volumes is mounted, and loop devices."""
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        ours = [line for line in mounts if str(self.service.root) in line]
        return ours + sh("losetup", "-a").splitlines()

    def exported(self) -> set[str]:
        """The volumes that the target exports, whatever the API says."""
        if self.service.settings.target == "lio":
            iscsi = Path("/sys/kernel/config/target/iscsi")
            names = {path.name.rpartition(":")[2] for path in iscsi.glob("iqn.*")}
            stores = [
                p.name
                for p in Path("/sys/kernel/config/target/core").glob("iblock_*/*")
                if p.is_dir()
            ]
            assert len(stores) == len(names), f"backstores {stores} for targets {names}"
            return names
        control = {**os.environ, "TGT_IPC_SOCKET": str(self.service.root / "run" / "tgtd")}
        shown = subprocess.run(
            ["tgtadm", "--lld", "iscsi", "--mode", "target", "--op", "show"],
            env=control, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {
            line.rpartition(":")[2] for line in shown.splitlines() if line.startswith("Target ")
        }


def logical_volumes() -> dict[str, frozenset[str]]:
    """The names of all, with their tags."""
    report = sh("lvs", "-a", "--reportformat", "json", "-o", "lv_name,lv_tags", GROUP)
    rows = json.loads(report[report.index("{") :])["report"][0]["lv"]
    return {row["lv_name"].strip("[]"): frozenset(row["lv_tags"].split(",")) for row in rows}


def told() -> list[dict[str, str]]:
    """What each logical volume of lunr's is: its role, id and volume."""
    tags = logical_volumes().values()
    found = (dict(t.removeprefix("lunr.").split("=") for t in one if "lunr." in t) for one in tags)
    return [one for one in found if one]


def roles() -> set[str]:
    """All but the references, as ``ROLE ID``."""
    return {f"{one['role']} {one['id']}" for one in told() if one["role"] != "reference"}


def references() -> list[str]:
    """The volumes of which the last backup's snapshot is kept."""
    return [one["volume"] for one in told() if one["role"] == "reference"]


def stray_mappings() -> list[str]:
    """Device-mapper's devices that LVM does not know."""
    known = {name.replace("-", "--") for name in logical_volumes()}
    found = []
    for line in sh("dmsetup", "info", "-c", "--noheadings", "-o", "name").splitlines():
        name = line.removeprefix(GROUP.replace("-", "--") + "-")
        for suffix in ("-cow", "-real", "-tpool"):
            name = name.removesuffix(suffix)
        if name not in known and "No devices" not in line:
            found.append(line)
    return found


def suspended() -> list[str]:
    shown = sh("dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "name,suspended")
    return [line for line in shown.splitlines() if line.endswith("Suspended")]


@contextlib.contextmanager
def running(pool: str, target: str, disk: Path, folder: Path) -> Iterator[World]:
    """The service and its node, with their state below `folder` and the pool on `disk`."""
    root = folder / "lunr"
    root.mkdir()
    settings = Settings(
        api_port=free_port(), portal=f"127.0.0.1:{free_port()}", store=f"files:{root}/store",
        db=f"sqlite:///{root}/lunr.db", pool=pool, group=GROUP, thin_pool="pool", target=target,
    )  # fmt: skip
    with contextlib.ExitStack() as ending:
        ending.enter_context(
            volume_group(GROUP, disk, thin_pool="pool" if pool == "thin" else None)
        )
        service = Service(root, settings, Console(file=sys.stderr))
        service.prepare()
        ending.callback(service.stop)
        if service.tgtd is not None:
            service.tgtd.start(service.logs)
        service.api.start(service.logs)
        node = Node(service, folder)  # imports what it needs while the API does
        ending.callback(node.stop)
        wait_until(lambda: _healthy(service.url), LONG, "the API", 0.5)
        lines = (root / "openrc").read_text().splitlines()
        env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        world = World(service, node, Client.from_env(env))
        world.start()
        yield world


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthcheck", timeout=5).ok
    except requests.ConnectionError:
        return False
