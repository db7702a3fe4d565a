"""The same code under eventlet: nothing may stop the other threads."""

from __future__ import annotations

import subprocess
import sys

from tests.support.services import CHECKOUT
from tests.support.waiting import PATIENCE

PROGRAM = """
from lunr.common import concurrency
concurrency.patch()
import threading, time, fcntl, os, ctypes
from lunr.storage import system
from tests.functional.storage.test_engine import engine, job, errors, Stop
from tests.system.storage.nodes import ODD_WORKER

ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()

def alive(what, work):
    before = ticks
    work()
    assert ticks - before > 3, (what, ticks - before)

libc = ctypes.CDLL(None)
alive("a call that blocks", lambda: concurrency.blocking(libc.usleep, 600000))
alive("a command", lambda: system.run(["sleep", "0.6"]))
def timeout():
    try:
        system.run(["sleep", "60"], timeout=0.6)
    except system.CommandTimeout:
        return
    raise AssertionError("no timeout")
alive("a timeout", timeout)
alive("a stream", lambda: list(system.stream(["sleep", "0.6"])))
def long_stream():
    assert sum(map(len, system.stream(["head", "-c", "1G", "/dev/zero"]))) == 1 << 30
alive("a long stream", long_stream)
assert system.run(["cat"], data=b"x" * 1000000).stdout == "x" * 1000000
def stopped():
    mine = job()
    threading.Timer(0.6, mine.stop, [Stop.CANCELLED]).start()
    try:
        engine().run(mine, "verify", backup_id="slow")
    except errors.Cancelled:
        return
    raise AssertionError("not cancelled")
alive("a worker", stopped)
try:
    concurrency.blocking(os.fsync, -1)
except (OSError, ValueError):
    print("fine")
"""


def test_commands_workers_and_the_disk_under_eventlet() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr
