"""A signal ends a process, whatever the process is just doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from lunr.common import signals
from tests.support.thorough import examples
from tests.support.waiting import PATIENCE

WAITING = """
import threading
from lunr.common import signals

stop = threading.Event()
signals.on_signal(stop.set)
print("waiting", flush=True)
while not stop.wait(0):  # nearly always with the event's lock held
    pass
"""


@pytest.mark.parametrize("number", signals.TO_END)
def test_an_event_is_set_while_it_is_waited_for(number: signal.Signals) -> None:
    for turn in range(examples(6, 100)):
        argv = [sys.executable, "-c", WAITING]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None
            waiting.stdout.readline()
            time.sleep(turn * 0.0023)
            waiting.send_signal(number)
            try:
                assert waiting.wait(PATIENCE) == 0
            finally:
                waiting.kill()


def test_an_action_is_called_again_though_it_failed() -> None:
    script = """
import os, signal, threading
from lunr.common import signals

called = threading.Semaphore(0)

def fail():
    called.release()
    raise ValueError("in vain")

signals.on_signal(fail, (signal.SIGHUP,))
for _ in range(2):
    os.kill(os.getpid(), signal.SIGHUP)
    assert called.acquire(timeout=10)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
