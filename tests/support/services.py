"""Real services for tests: PostgreSQL, Swift, tgtd, and XFS on a loop device.

Each is started on loopback, on free ports, under the run's folder, and stopped
by its pid. PostgreSQL and one Swift are shared by the run (see shared.py). A
service that can't be had skips the test and names what is missing.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import pytest
from sqlalchemy import create_engine, text

from lunr.db import migrate
from tests.support.shared import Access, Service, SharedServices, register_service
from tests.support.waiting import PATIENCE, free_port, wait_until
from tools.services.loopback import is_free, read_env

CHECKOUT = Path(__file__).resolve().parents[2]


def need_root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def need_fuse() -> None:
    """Skip the test where nothing can be mounted by FUSE."""
    need_root()
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse (the kernel's FUSE)")


def need_command(command: str, package: str) -> str:
    """The path of `command`; skips the test where it is not installed."""
    path = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"needs {command} (Debian package {package})")
    return path


# --- PostgreSQL ------------------------------------------------------------------


class _Cluster:
    """A private PostgreSQL cluster; it makes no promise to survive a crash of the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.binaries = _postgresql_binaries()
        self.user = _postgresql_user()

    def start(self) -> int:
        """Make it and start it; the port on which it answers."""
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        port = free_port()
        self._run("initdb", "-U", "lunr", "-A", "trust", "-N")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
        }
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        # With -w it returns when the server answers, -t seconds later at the latest.
        self._run("pg_ctl", "start", "-w", f"-t{PATIENCE:.0f}", "-l", str(self.folder / "log"))
        return port

    def stop(self) -> None:
        """Stop it without waiting for its clients; what it has kept is of no use any more."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-w", f"-t{PATIENCE:.0f}", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        # What it says goes to a file: the server would keep a pipe open.
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(
                [self.binaries / program, "-D", self.data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                user=self.user,
                cwd="/",
                env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(self.folder)},
                check=False,
            )
            said.seek(0)
            assert done.returncode == 0, f"{program} {arguments}: {said.read()}"


def _postgresql_binaries() -> Path:
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[4].zfill(9)
    )
    return (installed[-1] if installed else Path(str(shutil.which("postgres")))).parent


def _postgresql_user() -> str | None:
    """As whom it runs; None: as this process does."""
    if os.geteuid() != 0:  # PostgreSQL refuses to run as root
        return None
    return next(filter(_known_user, ("postgres", "nobody")), None)


def _missing_postgresql() -> str | None:
    if find_spec("psycopg2") is None:
        return "needs psycopg2 (lunr's extra postgresql)"
    if not (_postgresql_binaries() / "postgres").exists():
        return "needs PostgreSQL's server (Debian package postgresql)"
    if os.geteuid() == 0 and _postgresql_user() is None:
        return "needs a user postgres or nobody, as PostgreSQL refuses to run as root"
    return None


def _known_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


POSTGRESQL = register_service(
    Service(
        "postgresql",
        start=lambda folder, _services: {"port": _Cluster(folder).start()},
        stop=lambda folder: _Cluster(folder).stop(),
        missing=_missing_postgresql,
    )
)


@pytest.fixture
def postgresql(shared_services: SharedServices) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty PostgreSQL database."""
    port = shared_services.access(POSTGRESQL)["port"]
    server = f"postgresql+psycopg2://lunr@127.0.0.1:{port}"
    name = f"test{uuid.uuid4().hex}"
    _sql(server, f"CREATE DATABASE {name} TEMPLATE template0")
    yield f"{server}/{name}"
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _start_migrated(_folder: Path, services: SharedServices) -> Access:
    port = services.access(POSTGRESQL)["port"]
    server = f"postgresql+psycopg2://lunr@127.0.0.1:{port}"
    _sql(server, "CREATE DATABASE migrated TEMPLATE template0")
    migrate.upgrade(f"{server}/migrated")
    return {"server": server}


MIGRATED = register_service(
    Service(
        "migrated_postgresql",
        start=_start_migrated,
        stop=lambda _folder: None,  # it ends with its server
        missing=_missing_postgresql,
    )
)


@pytest.fixture
def migrated_postgresql(shared_services: SharedServices) -> Iterator[str]:
    """The SQLAlchemy URL of a PostgreSQL database with lunr's tables, which are empty."""
    server = shared_services.access(MIGRATED)["server"]
    name = f"test{uuid.uuid4().hex}"
    _sql(server, f"CREATE DATABASE {name} TEMPLATE migrated")
    yield f"{server}/{name}"
    _sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _sql(server: str, statement: str) -> None:
    """Run one statement outside of any transaction."""
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


# --- Swift -----------------------------------------------------------------------


class SwiftAccess(TypedDict):
    """How to log in to a Swift (authentication version 1): options of group ``[swift]``."""

    auth_url: str
    user: str
    key: str


class Swift:
    """A one-node Swift that a test may stop and start again; its data stays."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self) -> SwiftAccess:
        """Start it (again), on the same address where it was before, and return the access."""
        call_tool("swift", "start", self.root, folder=self.root)
        values = read_env(self.root / "env")
        return {"auth_url": values["ST_AUTH"], "user": values["ST_USER"], "key": values["ST_KEY"]}

    def stop(self) -> None:
        """Stop every server of it."""
        call_tool("swift", "stop", self.root)


def call_tool(name: str, *args: str | Path, folder: Path | None = None) -> None:
    """Run one of the checkout's tools that start and stop services.

    What it starts keeps its temporary files in `folder`; without one, where this process does.
    """
    done = subprocess.run(
        [CHECKOUT / "tools" / name, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ if folder is None else {**os.environ, "TMPDIR": str(folder)},
        check=False,  # the tools have deadlines of their own
    )
    assert done.returncode == 0, f"tools/{name} {args}: {done.stdout}{done.stderr}"


def missing_swift() -> str | None:
    """What the machine lacks for a Swift, or None."""
    return None if find_spec("swift") else "needs swift from PyPI (lunr's extra test)"


def need_swift() -> None:
    """Skip the test where Swift is not installed."""
    missing = missing_swift()
    if missing is not None:
        pytest.skip(missing)


SWIFT = register_service(
    Service(
        "swift_cluster",
        start=lambda folder, _services: dict(Swift(folder).start()),
        stop=lambda folder: Swift(folder).stop(),
        missing=missing_swift,
    )
)


@pytest.fixture(scope="session")
def swift_cluster(shared_services: SharedServices) -> SwiftAccess:
    """A real Swift, shared by the whole run: use containers of your own, leave it running."""
    access = shared_services.access(SWIFT)
    return {"auth_url": access["auth_url"], "user": access["user"], "key": access["key"]}


@pytest.fixture
def own_swift(run_folder: Path) -> Iterator[Swift]:
    """A real Swift of the test's own, not started yet, to be stopped and started at will."""
    need_swift()
    swift = Swift(Path(tempfile.mkdtemp(prefix="swift-", dir=run_folder)))
    try:
        yield swift
    finally:
        swift.stop()


# --- tgtd ------------------------------------------------------------------------


class Tgtd:
    """A tgtd of a test's own. It keeps no state: killed and started again, it has no targets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.portal = f"127.0.0.1:{self.port}"
        self.socket = folder / "tgtd.0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers on the portal."""
        # With a busy portal tgtd would listen on 0.0.0.0:3260, and say nothing.
        assert is_free(self.port), f"port {self.port} was taken meanwhile"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={self.portal}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TGT_IPC_SOCKET": str(self.folder / "tgtd")},
            )
        try:
            wait_until(self._answers, what="tgtd listens")
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"tgtd did not start: {(self.folder / 'log').read_text()}")
        return self.socket.exists() and not is_free(self.port)

    def kill(self) -> None:
        """End it with SIGKILL: it ignores SIGTERM."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def tgtd(run_folder: Path) -> Iterator[Tgtd]:
    """A running tgtd of the test's own: ``socket``, ``portal``, ``kill()``, ``start()``."""
    need_root()
    need_command("tgtd", "tgt")
    daemon = Tgtd(Path(tempfile.mkdtemp(prefix="tgtd-", dir=run_folder)))
    daemon.start()
    yield daemon
    daemon.kill()


# --- XFS -------------------------------------------------------------------------

#: mkfs.xfs makes nothing smaller.
XFS_MINIMUM = 300 << 20


@pytest.fixture
def make_xfs(run_folder: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a new XFS with reflink, of so many bytes, and returns where."""
    need_root()
    need_command("mkfs.xfs", "xfsprogs")
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices (/dev/loop-control)")
    mounted: list[Path] = []

    def make(size: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="xfs-", dir=run_folder))
        image, point = folder / "image", folder / "mnt"
        point.mkdir()
        image.touch()
        os.truncate(image, size)
        _tool("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
        _tool("mount", "-o", "loop", str(image), str(point))
        mounted.append(folder)
        return point

    yield make
    for folder in mounted:
        _tool("umount", str(folder / "mnt"))
        (folder / "image").unlink()


@pytest.fixture
def xfs_mount(make_xfs: Callable[[int], Path]) -> Path:
    """A mounted, empty XFS with reflink of 2 GiB (sparse) of the test's own."""
    return make_xfs(2 << 30)


def _tool(*argv: str) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(argv)}: {done.stderr}"
