"""How fast one API process is: reads, pages and creates, against a trivial application.

Starts its own API process on a SQLite file with VOLUMES volumes, and the
baseline (an application that answers a constant) on the same server, in the
same run; drives both with ``wrk``. Run it with ``tools/bench api``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from lunr.api.services import Services
from lunr.common import concurrency, config, ids, times
from lunr.common.states import Node as NodeState
from lunr.db import migrate
from lunr.db.models import Node, Volume
from lunr.db.transitions import move

VOLUMES = 10_000
NODES = 10
ACCOUNT = "bench"

#: Prints what wrk measured as one line of JSON.
_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"refused":%d,"broken":%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Measured:
    """What one run of wrk gave."""

    rate: float
    p50_ms: float
    p99_ms: float


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table; 1 if something was missed or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="how long each measurement takes")
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.baseline:
        return _serve_baseline()
    if shutil.which("wrk") is None:
        print("needs wrk (Debian package wrk)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="lunr-bench-") as name:
        return _measure(Path(name), arguments.seconds)


def _measure(folder: Path, seconds: int) -> int:
    token, volume = _prepare(folder)
    api = [sys.executable, "-m", "lunr.api.main", "--config-file", str(folder / "lunr.conf")]
    baseline = [sys.executable, __file__, "--baseline"]
    create = 'wrk.method = "POST"\nwrk.body = "{\\"size\\": 1}"\n'
    create += 'wrk.headers["Content-Type"] = "application/json"\n'
    with _server(baseline, folder / "baseline.log") as url:
        base = _wrk(folder, f"{url}/", token, seconds)
    with _server(api, folder / "api.log") as url:
        things = f"{url}/v1.0/{ACCOUNT}/volumes"
        get = _wrk(folder, f"{things}/{volume}", token, seconds)
        page = _wrk(folder, f"{things}?limit=100", token, seconds, connections=1)
        made = _wrk(folder, things, token, seconds, script=create)
        request = urllib.request.Request(f"{things}?limit=1", headers={"X-Auth-Token": token})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["volumes"][0]["size"] == 1
    rows = (
        ("baseline: a constant", base, "", True),
        ("GET a volume", get, ">= 1200/s", get.rate >= 1200),
        ("GET a page of 100, alone", page, "p50 <= 20 ms", page.p50_ms <= 20),
        ("POST a volume", made, ">= 120/s", made.rate >= 120),
    )
    table = Table(title=f"one API process, SQLite, {VOLUMES} volumes; wrk -t1 -c8")
    for heading in ("request", "per second", "p50 ms", "p99 ms", "of the baseline", "must reach"):
        table.add_column(heading, justify="left" if heading == "request" else "right")
    for what, got, goal, reached in rows:
        table.add_row(
            what,
            f"{got.rate:.0f}",
            f"{got.p50_ms:.1f}",
            f"{got.p99_ms:.1f}",
            f"{got.rate / base.rate:.2f}",
            goal if reached else f"{goal} MISSED",
        )
    Console().print(table)
    return 0 if all(reached for *_, reached in rows) else 1


def _prepare(folder: Path) -> tuple[str, str]:
    """Make the configuration and the database; a token and the id of a volume in the middle."""
    key = folder / "secret.key"
    key.touch(mode=0o600)
    key.write_text(ids.new() + ids.new())
    path = folder / "lunr.conf"
    path.write_text(
        f"[database]\nconnection = sqlite:///{folder}/lunr.db\n"
        f"[api]\nbind_port = 0\nsecret_key_file = {key}\nnode_timeout = 86400\n"
        "[quota]\nvolumes = 1000000\ngigabytes = 100000000\n"
    )
    conf = config.load(["--config-file", str(path)])
    migrate.upgrade(conf.database.connection)
    services = Services.of(conf)
    services.accounts.create(ACCOUNT)
    token = services.tokens.create(ACCOUNT)["token"]
    names = [f"v{number:05}" for number in range(VOLUMES)]

    def insert(session: Session) -> None:
        for number in range(NODES):
            session.add(Node(id=f"n{number}", capacity_bytes=1 << 55, last_seen=times.now()))
        session.flush()
        for number in range(NODES):
            move(session, Node, f"n{number}", NodeState.ACTIVE, "begin")
        session.add_all(
            Volume(
                id=name,
                account_id=ACCOUNT,
                name=f"volume {name}",
                size=10,
                reserved=10,
                progress=100,
                volume_type_name="default",
                node_id=f"n{number % NODES}",
                meta={"purpose": "benchmark"},
            )
            for number, name in enumerate(names)
        )

    services.context.db.write(insert)
    services.close()
    return token, names[VOLUMES // 2]


def _wrk(
    folder: Path, url: str, token: str, seconds: int, script: str = "", connections: int = 8
) -> Measured:
    path = folder / "wrk.lua"
    path.write_text(script + _DONE)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(path)]
    done = subprocess.run(
        [*command, "-H", f"X-Auth-Token: {token}", url],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk printed no result: {done.stdout}")
    result = json.loads(found[1])
    if result["refused"] or result["broken"]:
        raise RuntimeError(f"not every request was answered well: {result}")
    return Measured(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"])


@contextlib.contextmanager
def _server(command: list[str], log: Path) -> Iterator[str]:
    """Run `command`, which logs the address that it listens on; its URL."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while (found := re.search(r"http://[0-9.]+:[0-9]+", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start: {log.read_text()}")
            time.sleep(0.05)
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _serve_baseline() -> int:
    concurrency.patch()
    body = b'{"status": "ok"}'

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
    concurrency.serve(sock, app)
    return 0


if __name__ == "__main__":
    sys.exit(main())
