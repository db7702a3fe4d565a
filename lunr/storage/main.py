"""``lunr-storage --config-file FILE``: a storage node."""

from lunr.common import concurrency

concurrency.patch()

# ruff: noqa: E402 - the modules below must find the standard library patched
import logging
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lunr.backup import keys
from lunr.common import config, errors, ids, log
from lunr.storage.agent import Agent
from lunr.storage.api_client import ApiClient
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.jobs import Node
from lunr.storage.metrics import Metrics
from lunr.storage.pools.files import FilesPool
from lunr.storage.server import NodeApi
from lunr.storage.targets.tgt import TgtTarget

_log = logging.getLogger(__name__)

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


def _run(conf: config.ConfigOpts) -> None:
    node_id = ids.check(conf.node.id, "[node] id")
    metrics = Metrics()
    agent = _agent(conf, node_id, metrics)
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
    with _listen(conf.node.bind_host, conf.node.bind_port) as listening:
        serving = threading.Thread(
            target=concurrency.serve,
            args=(listening, NodeApi(node_id, agent, metrics)),
            name="http",
            daemon=True,
        )
        serving.start()
        while not told and not failed:
            time.sleep(_SIGNAL_INTERVAL)
        _log.info("stopping; exports and mounts stay as they are")
        agent.stop()
    if failed:
        raise failed[0]


def _agent(conf: config.ConfigOpts, node_id: str, metrics: Metrics) -> Agent:
    """The agent and its parts, as the configuration has them."""
    api = ApiClient(
        conf.node.api_url, node_id, _secret(Path(conf.node.token_file), "[node] token_file")
    )
    pool = FilesPool(Path(conf.files.path), conf.files.image_gib, conf.node.overcommit)
    target = TgtTarget(Path(conf.tgt.socket), Path(conf.files.path))
    engine = Engine(
        url=conf.store.url,
        options=_store_options(conf),
        key=keys.load(Path(conf.store.key_file)).hex(),
        compression=conf.store.compression,
        concurrency=conf.store.concurrency,
        moved=metrics.worker_bytes.inc,
    )
    exports = Exports(pool, target)
    metrics.watch(pool, exports)
    return Agent(
        Node(pool, exports, engine),
        target,
        api,
        conf.tgt.portal,
        heartbeat=conf.node.heartbeat,
        quick_workers=conf.node.quick_workers,
        data_workers=conf.node.data_workers,
        metrics=metrics,
    )


def _store_options(conf: config.ConfigOpts) -> dict[str, Any]:
    """What the engine needs besides the URL to reach the store."""
    if not conf.store.url.startswith("swift:"):
        return {}
    options = {name: conf.swift[name] for name in conf.swift if name != "key_file"}
    return {**options, "key": _secret(Path(conf.swift.key_file), "[swift] key_file")}


def _secret(path: Path, option: str) -> str:
    """The one line in a file that nobody else may read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(reason=f"{option} {path}: {error}") from error
    if mode & 0o077:
        raise errors.ConfigError(
            reason=f"{option} {path}: others may read it (mode {mode:o}); chmod 0600 it"
        )
    if not text:
        raise errors.ConfigError(reason=f"{option} {path} is empty")
    return text


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
