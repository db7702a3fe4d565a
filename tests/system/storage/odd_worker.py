"""An engine worker that misbehaves as its task's backup_id says."""

import json
import os
import signal
import sys
import threading
import time

task = json.loads(sys.stdin.readline())
how = task["backup_id"]


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def obey() -> None:
    for line in sys.stdin:
        if line.strip() == "cancel" and how != "stubborn":
            say(event="failed", code="cancelled", reason="Cancelled on request.", retry=False)
            os._exit(1)
    os._exit(2)


if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "babble":
    print("Segmentation fault", flush=True)
if how == "full":
    say(event="failed", code="store_full", reason="The store is full.", retry=False)
if how in ("slow", "stubborn"):
    threading.Thread(target=obey, daemon=True).start()
    for done in range(10000):
        say(event="progress", done=done, total=10000)
        time.sleep(0.05)
if how == "bad-lines":
    sys.stdout.buffer.write(b"\xff\xfe\n")
