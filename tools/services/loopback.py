"""Daemons on loopback, kept under a folder: their ports, their pid files, their end.

For tools/swift and tools/keystone; the standard library is all it needs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.testing.patience import patient

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
STOP_TIMEOUT = patient(20.0)
#: What free_port() chooses from.
FIRST_PORT, LAST_PORT = 15000, 32000


class Failed(Exception):
    """What to tell the person; the program ends with exit code 1."""


class Daemons:
    """Processes with their pid files in `run` and their logs in `log`."""

    def __init__(self, run: Path, log: Path) -> None:
        self.run = run
        self.log = log

    def spawn(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> None:
        """Start `argv` as the daemon `name`, with `env` added to the environment."""
        with (self.log / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                # A Ctrl-C on the terminal where it was started does not stop it.
                start_new_session=True,
            )
        (self.run / f"{name}.pid").write_text(f"{process.pid} {_birth(process.pid)}")
        # Python would warn that the process still runs at the end: it is meant to.
        process.returncode = 0

    def pid(self, name: str) -> int | None:
        """The pid of the daemon if it was started here and still runs."""
        try:
            pid, birth = (self.run / f"{name}.pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        # The same pid with another time of birth is someone else's process.
        return int(pid) if _birth(int(pid)) == birth else None

    def stop(self, names: Iterable[str]) -> None:
        """Stop these daemons if they were started here, and no others."""
        pids = {name: self.pid(name) for name in names}
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(None, pids.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
            deadline = time.monotonic() + STOP_TIMEOUT
            while time.monotonic() < deadline:
                if not any(self.pid(name) for name in pids):
                    for name in pids:
                        (self.run / f"{name}.pid").unlink(missing_ok=True)
                    return
                time.sleep(0.02)
        raise Failed(f"these do not end: {pids}")

    def check(self, names: Iterable[str]) -> None:
        """Raise Failed, with the end of its log, if one of these daemons has ended."""
        for name in names:
            if not self.pid(name):
                log = self.log / f"{name}.log"
                tail = log.read_text(errors="replace")[-2000:]
                raise Failed(f"{name} ended; its log, {log}:\n{tail}")


def _birth(pid: int) -> str | None:
    """When the process was started (clock ticks since boot), or None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # proc(5): state is 3, starttime 22


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(taken: Iterable[int] = ()) -> int:
    """A free port not in `taken`, below those that the kernel gives to outgoing connections.

    LUNR_PORTS=FIRST-LAST narrows the choice, so that several who choose don't meet.
    """
    given = os.environ.get("LUNR_PORTS", f"{FIRST_PORT}-{LAST_PORT}")
    first, _, last = given.partition("-")
    for _ in range(1000):
        port = random.randint(int(first), int(last))
        if port not in taken and is_free(port):
            return port
    raise Failed(f"no free port among {given}")


def write_private(path: Path, text: str) -> None:
    """Write a file that may hold secrets: mode 0600."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Write a file for shells to source: these variables, exported. No value needs quotes."""
    write_private(path, "".join(f"export {name}={value}\n" for name, value in values.items()))


def read_env(path: Path) -> dict[str, str]:
    """What `write_env` wrote."""
    lines = path.read_text().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)
