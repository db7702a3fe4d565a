"""The service in the VM: an API in a process of its own, and a node on LVM that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from lunr.client import Client
from lunr.client.records import Export
from lunr.storage.targets.lio import tree
from lunr.up import NODE, ChildProcess, Service, Settings
from tests.support.faults.faulty_disk import FaultyDisk
from tests.support.initiator import sh
from tests.support.services import CHECKOUT
from tests.support.volume_groups import volume_group
from tests.support.waiting import PATIENCE, free_port, wait_until

GROUP = "lunr-test"
#: The group of a second node: see second_node.py.
OTHER_GROUP = "lunr-two"
#: What device-mapper calls the disk below a world's group.
DISK_NAME = "world"
#: The name of the initiator that the tests of nodes use.
INITIATOR = "iqn.2026-11.io.lunr.test:initiator"
OVER = ("DONE", "FAILED", "CANCELLED")


class Nursery:
    """Starts lunr's programs by forking: see tests.support.faults.processes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.processes"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, program: str, argv: list[str], log: Path, **options: str) -> int:
        """Start one; its pid."""
        return int(self._ask(program=program, argv=argv, log=str(log), **options))

    def wait(self, pid: int) -> int:
        """Wait for its end; its status, as os.waitpid has it."""
        return int(self._ask(wait=pid))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def _ask(self, **order: Any) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        while (answer := self._process.stdout.readline().strip()) == "ready":
            pass
        return answer


class Api(ChildProcess):
    """The API, forked."""

    def __init__(self, nursery: Nursery, config: Path) -> None:
        super().__init__("api", ["--config-file", str(config)])
        self._nursery, self._pid = nursery, 0

    def start(self, logs: Path) -> None:
        self._pid = self._nursery.fork("api", self.argv, logs / "api.log")

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        if self._pid:
            os.kill(self._pid, sig)
            self._nursery.wait(self._pid)


class ForkedService(Service):
    """What `lunr up` runs, without its storage node: `Node` is that."""

    def __init__(self, root: Path, settings: Settings, nursery: Nursery) -> None:
        super().__init__(root, settings, Console(file=sys.stderr))
        self.nursery = nursery
        self.api = Api(nursery, self.config)

    def _manage(self, *args: str) -> None:
        self.run("manage", *args)

    def run(self, program: str, *args: str) -> None:
        """Run one of the nursery's programs to its end."""
        log = self.logs / f"{program}.log"
        argv = ["--config-file", str(self.config), *args]
        status = self.nursery.wait(self.nursery.fork(program, argv, log))
        assert status == 0, log.read_text()


class Node:
    """The storage node of `service`, which can be doomed."""

    def __init__(self, service: ForkedService, folder: Path) -> None:
        self.folder = folder
        self.pid = 0
        self._is_told_to_end = False
        self._nursery = service.nursery
        self._argv = ["--config-file", str(service.config)]
        (folder / "steps").mkdir()
        self.doom({})

    def start(self) -> None:
        self._ended("start").unlink(missing_ok=True)
        log, doom = self.folder / "storage.log", str(self.folder)
        self.pid = self._nursery.fork("storage", self._argv, log, doom=doom)

    def doom(self, steps: Mapping[str, int]) -> None:
        """Have the node die just before that step of that work, once for each (see nursery)."""
        for path in (self.folder / "steps").iterdir():
            path.unlink()
        (self.folder / "doom").write_text("".join(f"{k} {step}\n" for k, step in steps.items()))

    def spare(self) -> None:
        """Have it die of nothing any more."""
        (self.folder / "doom").write_text("")

    def is_doomed(self) -> bool:
        """Whether there is something left that it will die of."""
        return bool((self.folder / "doom").read_text())

    def has_ended(self, work: str) -> bool:
        """Whether that work came to its end since it was doomed, or since the start."""
        return self._ended(work).exists()

    def steps(self, work: str) -> list[str]:
        """The steps of work that has ended."""
        return self._ended(work).read_text().splitlines()

    def _ended(self, work: str) -> Path:
        return self.folder / "steps" / work.replace("/", ":")

    def is_dead(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def kill(self) -> None:
        """Kill it at any time."""
        os.kill(self.pid, signal.SIGKILL)
        self._nursery.wait(self.pid)

    def tell_to_end(self) -> None:
        """Tell it to end, and wait until it has, or is killed."""
        self._is_told_to_end = True
        os.kill(self.pid, signal.SIGTERM)
        wait_until(self.is_dead, what="the end of the node", interval=0.1)

    def bury(self) -> str:
        """What it was about to do when it died."""
        status = self._nursery.wait(self.pid)
        is_told, self._is_told_to_end = self._is_told_to_end, False
        if status == 0 and is_told:
            return "it ended as it was told to"
        assert os.WIFSIGNALED(status), f"the node ended by itself ({status}): {self.log()}"
        return (self.folder / "killed").read_text()

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "storage.log").read_text()[-3000:]

    def stop(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            self._nursery.wait(self.pid)


class World:
    """An API, and a node on LVM that dies again and again."""

    def __init__(
        self, service: ForkedService, node: Node, client: Client, disk: FaultyDisk
    ) -> None:
        self.service, self.node, self.client, self.disk = service, node, client, disk
        #: Where the node was killed last.
        self.deaths: list[str] = []

    def start(self) -> None:
        """Start the node, and wait until volumes can be placed on it."""
        self.node.start()
        self.wait_until_active()

    def wait_until_active(self) -> None:
        """Wait until it has started, and volumes can be placed on it."""
        self.wait_for("start")
        wait_until(self._is_active, what="the node", interval=0.5)

    def _is_active(self) -> bool:
        return self.client.admin.nodes.get(NODE).status == "ACTIVE"

    def wait_for(self, work: str) -> None:
        """Wait until that work has ended, or the node with it."""
        wait_until(
            lambda: self.node.is_dead() or self.node.has_ended(work),
            what=f"the end of {work}",
            interval=0.1,
        )

    def do(self, work: str, begin: Callable[[], object], dooms: Mapping[str, int]) -> None:
        """Begin what leads to that work; the node dies of `dooms`, and is started again each time.

        When it returns, no job is left to do.
        """
        self.deaths = []
        self.node.doom(dooms)
        begin()
        self.wait_for(work)
        while self.node.is_dead():
            self.deaths.append(self.node.bury())
            self.node.start()
            self.wait_for("start")
            if not self.node.is_dead() and self.node.is_doomed():
                self.wait_for(work)
        self.wait_idle()
        self.node.spare()  # it may have had fewer steps

    def configure(self, **options: object) -> None:
        """Start the node anew with other options of its sections; ``SECTION_OPTION`` names one."""
        configure(self.service.config, options)
        self.node.kill()
        self.start()

    def reboot(self) -> None:
        """What the machine's power button does to all that is the node's, and then its start."""
        self.node.kill()
        tgtd = self.service.tgtd
        if tgtd is not None:
            tgtd.stop(signal.SIGKILL)
        else:
            for disk in tree.disks().values():
                tree.take_down(disk)
            tree.sweep()
        self._end_restores()
        sh("vgchange", "-qqan", GROUP)
        shutil.rmtree(self.service.root / "run")
        (self.service.root / "run").mkdir(mode=0o700)
        if tgtd is not None:
            tgtd.start(self.service.logs)
        self.node.start()

    def end_what_serves(self) -> None:
        """Kill the processes that serve filling volumes."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"lunr.backup.lazy_image.process" in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def _end_restores(self) -> None:
        """End the processes that serve filling volumes, and what stands on them."""
        self.end_what_serves()
        for name in sh("dmsetup", "ls", "--target", "clone", check=False).splitlines():
            if not name.startswith("No devices"):
                sh("dmsetup", "remove", "--force", name.split()[0])
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(self.service.root) in line:
                sh("umount", "-l", line.split()[1])
        sh("losetup", "--detach-all")

    def wait_idle(self) -> None:
        """Wait until no job is left to do."""
        wait_until(self._is_idle, what=f"the end of all after {self.deaths}", interval=0.1)

    def _is_idle(self) -> bool:
        """Asking the API would cost a hundred times as much, and keep the node waiting."""
        with contextlib.closing(sqlite3.connect(self.service.root / "lunr.db", timeout=60)) as db:
            marks = ",".join("?" * len(OVER))
            (left,) = db.execute(f"SELECT count(*) FROM jobs WHERE status NOT IN ({marks})", OVER)
            return left == (0,)

    def export(self, volume_id: str) -> Export:
        """Export a volume to the tests' initiator."""
        self.client.exports.create(volume_id, initiator=INITIATOR, ip="127.0.0.1")
        return self.client.exports.wait(volume_id, timeout=PATIENCE)

    def check(self) -> None:
        """Every record is final and fine, and on the node is just what they say."""
        where = f"after {self.deaths}"
        volumes = list(self.client.volumes.list())
        snapshots = list(self.client.snapshots.list())
        exported = {v.id for v in volumes if v.export_status is not None}
        assert {v.status for v in volumes} <= {"ACTIVE"}, f"{where}: {volumes}"
        assert {v.export_status for v in volumes} <= {None, "ATTACHED"}, f"{where}: {volumes}"
        assert {s.status for s in snapshots} <= {"AVAILABLE"}, f"{where}: {snapshots}"
        assert {b.status for b in self.client.backups.list()} <= {"AVAILABLE"}, where
        expected = {f"volume {v.id}" for v in volumes} | {f"snapshot {s.id}" for s in snapshots}
        with contextlib.suppress(AssertionError):  # what is wrong then is told below
            # What was half made, or used last, goes behind.
            wait_until(lambda: roles() == expected and self._is_clear(), interval=0.25)
        found = roles()
        assert found == expected, f"{where}: {found - expected} too much, no {expected - found}"
        of = baselines()
        assert len(of) == len(set(of)), f"{where}: {of}"
        assert set(of) <= {v.id for v in volumes}, f"{where}: {of}"
        assert stray_mappings() == [], where
        assert self.exported() == exported, where
        assert self._shown() == [], where
        assert suspended() == [], where

    def _is_clear(self) -> bool:
        return not stray_mappings() and not self._shown()

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


def configure(file: Path, options: Mapping[str, object]) -> None:
    """Set `options`, each named ``SECTION_OPTION``, in the configuration `file`."""
    parser = RawConfigParser(default_section="")
    parser.read(file)
    for name, value in options.items():
        parser.set(*name.split("_", 1), str(value))
    with file.open("w") as out:
        parser.write(out)


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
    """All but the baselines, as ``ROLE ID``."""
    return {f"{one['role']} {one['id']}" for one in told() if one["role"] != "reference"}


def baselines() -> list[str]:
    """The volumes of which the last backup's snapshot is kept."""
    return [one["volume"] for one in told() if one["role"] == "reference"]


def stray_mappings() -> list[str]:
    """Device-mapper's devices that LVM does not know."""
    known = {name.replace("-", "--") for name in logical_volumes()} | {DISK_NAME}
    found = []
    for line in sh("dmsetup", "info", "-c", "--noheadings", "-o", "name").splitlines():
        if line.startswith(OTHER_GROUP.replace("-", "--")):
            continue
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
def running(
    pool: str, target: str, disk: FaultyDisk, folder: Path, nursery: Nursery
) -> Iterator[World]:
    """The service and its node, with their state below `folder` and the pool on `disk`."""
    root = folder / "lunr"
    root.mkdir()
    settings = Settings(
        api_port=free_port(), portal=f"127.0.0.1:{free_port()}", store=f"files:{root}/store",
        db=f"sqlite:///{root}/lunr.db", pool=pool, group=GROUP, thin_pool="pool", target=target,
    )  # fmt: skip
    thin_pool = "pool" if pool == "thin" else None
    with contextlib.ExitStack() as ending:
        ending.enter_context(volume_group(GROUP, disk.path, thin_pool=thin_pool))
        service = ForkedService(root, settings, nursery)
        service.prepare()
        # A wipe of a GiB would be waited for 10 s: test_lvm_wiping.py tries the limit.
        configure(service.config, {"lvm_wipe_mib_per_second": 0})
        ending.callback(service.stop)
        if service.tgtd is not None:
            service.tgtd.start(service.logs)
        service.api.start(service.logs)
        node = Node(service, folder)
        ending.callback(node.stop)
        wait_until(lambda: _healthy(service.url), what="the API", interval=0.5)
        lines = (root / "openrc").read_text().splitlines()
        env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        world = World(service, node, Client.from_env(env), disk)
        world.start()
        yield world


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthcheck", timeout=5).ok
    except requests.ConnectionError:
        return False
