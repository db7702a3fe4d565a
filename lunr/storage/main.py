"""``lunr-storage --config-file FILE``: a storage node."""

from lunr.common import concurrency

concurrency.patch()

# ruff: noqa: E402 - the modules below must find the standard library patched
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from lunr.backup.keys import from_config, master_keys
from lunr.backup.stores.from_config import store_options
from lunr.common import config, errors, ids, log
from lunr.common import files as private
from lunr.common.units import MIB
from lunr.storage import system
from lunr.storage.agent.agent import Agent
from lunr.storage.agent.api_client import ApiClient
from lunr.storage.baselines import Baselines
from lunr.storage.engine import PROGRAMS, Engine
from lunr.storage.exports import Exports
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.metrics import Metrics
from lunr.storage.pools.base import DevicePool, Pool
from lunr.storage.restore.dm_clone import device
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.server import NodeApi
from lunr.storage.targets.base import Target

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two looks at whether a signal has come.
_SIGNAL_INTERVAL = 0.2


def main(argv: list[str] | None = None) -> int:
    """Run the storage node until SIGTERM or SIGINT; returns the exit code."""
    try:
        conf = config.load(argv, prog="lunr-storage")
        log.setup(conf.log_level, conf.log_style)
        _run(conf)
    except errors.LunrError as error:
        log.setup()
        _log.error("%s", error)
        return 1
    return 0


class NotReady(errors.LunrError):
    """The node can't start:
    {reasons}"""

    code = "not_ready"


class _Problems:
    """What keeps the node from starting, gathered so that all of it is told at once."""

    def __init__(self) -> None:
        self.found: list[errors.LunrError] = []

    def ask(self, what: Callable[..., T], *args: Any) -> T:
        """Return ``what(*args)``; if that fails nothing, which nobody is to use: `tell` first."""
        try:
            return what(*args)
        except errors.LunrError as error:
            self.found.append(error)
            return cast(T, None)

    def tell(self) -> None:
        """Raise NotReady if there was a problem."""
        if self.found:
            raise NotReady(reasons="\n".join(f"- {error}" for error in self.found))


def _run(conf: config.ConfigOpts) -> None:
    problems = _Problems()
    metrics = Metrics()
    agent = _agent(conf, metrics, problems)
    listening = problems.ask(_listen, conf.node.bind_host, conf.node.bind_port)
    problems.tell()
    told: list[int] = []
    failed: list[Exception] = []
    # A handler runs anywhere, even inside eventlet's hub: it may not touch a lock.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda number, _: told.append(number))

    def start() -> None:
        try:
            agent.start()
        except Exception as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threading.Thread(target=start, name="start", daemon=True).start()
    with listening:
        serving = threading.Thread(
            target=concurrency.serve,
            args=(listening, NodeApi(conf.node.id, agent, metrics)),
            name="http",
            daemon=True,
        )
        serving.start()
        while not told and not failed:
            time.sleep(_SIGNAL_INTERVAL)
        detach = conf.node.detach_at_stop
        _log.info("stopping; exports %s", "are taken down" if detach else "stay as they are")
        agent.stop(detach)
    if failed:
        raise failed[0]


def _agent(conf: config.ConfigOpts, metrics: Metrics, problems: _Problems) -> Agent:
    """The agent and its parts, as the configuration has them; it is for use if none is missing."""
    ask = problems.ask
    node_id = ask(ids.check, conf.node.id, "[node] id")
    token = ask(private.read, conf.node.token_file, "[node] token_file")
    key = ask(from_config.open_master_keys, conf)
    store = ask(store_options, conf)
    for program in PROGRAMS:
        ask(system.need, program)
    run = Path(conf.node.run_dir)
    pool, target = ask(_pool, conf), ask(_target, conf, RestoreRegistry.folder_in(run))
    ask(_need_fuse)
    if isinstance(pool, DevicePool):
        pool.hide_loops()
    if pool is not None:
        ask(pool.check)
    # A tgtd that is away may come yet; what the kernel lacks does not come by itself.
    if target is not None and (problems.found or conf.node.target == "lio"):
        ask(target.check)
    problems.tell()
    engine = Engine(
        url=conf.store.url,
        options=store,
        key=master_keys.text(key),
        encryption=conf.store.encryption,
        compression=conf.store.compression,
        concurrency=conf.store.concurrency,
        limit=conf.node.backup_mib_per_second * MIB,
        moved=metrics.worker_bytes.inc,
    )
    by_clone = conf.node.pool != "files" and conf.node.dm_clone == "auto"
    restores = RestoreRegistry(
        *(pool, engine, Path(conf.node.state_dir), run),
        dm_clone=by_clone and device.available(),
    )
    return Agent(
        NodeContext(pool, Exports(restores, target), engine, restores, _baselines(conf, pool)),
        target,
        ApiClient(conf.node.api_url, node_id, token),
        conf[conf.node.target].portal,
        heartbeat=conf.node.heartbeat,
        quick_workers=conf.node.quick_workers,
        data_workers=conf.node.data_workers,
        concurrent_fills=conf.node.concurrent_fills,
        metrics=metrics,
    )


# The drivers are imported where they are chosen: each has its own libraries.


def _pool(conf: config.ConfigOpts) -> Pool:
    """The pool that is configured."""
    match conf.node.pool:
        case "lvm":
            from lunr.storage.pools.lvm.pool import LvmPool

            return LvmPool(
                conf.lvm.group,
                reserve_percent=conf.lvm.reserve_percent,
                snapshot_percent=conf.lvm.snapshot_percent,
                snapshot_grow_at=conf.lvm.snapshot_grow_at,
                wipe_mib_per_second=conf.lvm.wipe_mib_per_second,
            )
        case "thin":
            from lunr.storage.pools.thin.pool import ThinPool

            return ThinPool(
                conf.lvm.group, conf.lvm.thin_pool, conf.lvm.full_percent, conf.node.overcommit
            )
        case _:
            from lunr.storage.pools.files.pool import FilesPool

            return FilesPool(Path(conf.files.path), conf.files.image_gib, conf.node.overcommit)


def _baselines(conf: config.ConfigOpts, pool: Pool) -> Baselines:
    keep = {"auto": pool.light_snapshots, "on": True, "off": False}[conf.node.keep_reference]
    return Baselines(pool, keep=keep, days=conf.node.reference_days)


def _need_fuse() -> None:
    if not Path("/dev/fuse").exists():
        raise errors.ConfigError(
            reason="volumes are restored by way of /dev/fuse, which is not there: modprobe fuse"
        )


def _target(conf: config.ConfigOpts, restores: Path) -> Target:
    """The target that is configured; volumes that are being filled are below `filling`."""
    files = conf.node.pool == "files"
    folder = Path(conf.files.path) if files else Path("/dev") / conf.lvm.group
    match conf.node.target:
        case "lio":
            from lunr.storage.targets.lio.target import LioTarget

            return LioTarget(conf.lio.portal, folder)
        case _:
            from lunr.storage.targets.tgt.target import TgtTarget

            return TgtTarget(Path(conf.tgt.socket), folder, restores)


def _listen(host: str, port: int) -> socket.socket:
    try:
        sock = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise errors.ConfigError(
            reason=f"[node] bind_host and bind_port, {host}:{port}: {error.strerror}"
        ) from error
    _log.info("for operators: http://%s:%d/status", *sock.getsockname()[:2])
    return sock


if __name__ == "__main__":
    sys.exit(main())
