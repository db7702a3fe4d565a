"""Backs up a machine and is killed, with SIGKILL, before or just after
a given message to QEMU.

``python victim.py QMP STORE STEP [alone]``, or with a COMMAND as STEP to be killed just after
that was sent, to QEMU or to the guest's agent, whose socket may follow. With ``alone`` the
process that guards it is killed first. Ends with exit code 0 if the backup took fewer steps.

``python victim.py QMP STORE STEP qemu PID`` kills QEMU instead, and ends with exit code 3 then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lunr.backup.keys.derive import PUBLIC_MASTER, derive
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.common.errors import LunrError
from lunr.live.backup.backup import Options, backup
from lunr.live.qemu import guard
from lunr.live.qemu.qmp import LineReader, Monitor


def main() -> None:
    qmp, store, step, *more = sys.argv[1:]
    alone = "alone" in more
    left = int(step) if step.isdigit() else sys.maxsize
    qemu = int(more[1]) if more[:1] == ["qemu"] else None
    agent = None if qemu else next((Path(one) for one in more if one != "alone"), None)
    guards: list[guard.Guard] = []
    send, enter = LineReader.send, guard.Guard.__enter__

    def die() -> None:
        if qemu is not None:
            with contextlib.suppress(ProcessLookupError):  # killed a step before
                os.kill(qemu, signal.SIGKILL)
            return
        for one in guards if alone else ():
            assert one._process is not None
            one._process.kill()
            one._process.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    def step_on() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            die()

    def doomed(self: LineReader, *messages: Any, **kwargs: Any) -> None:
        step_on()
        send(self, *messages, **kwargs)
        if any(message["execute"] == step for message in messages):
            die()
        step_on()

    def noted(self: guard.Guard) -> guard.Guard:
        guards.append(self)
        return enter(self)

    LineReader.send = doomed  # type: ignore[method-assign]
    guard.Guard.__enter__ = noted  # type: ignore[method-assign]
    repository = Repository(open_store(store, "default"), derive(PUBLIC_MASTER, "default"))
    scratch = Path(store.removeprefix("files:")).parent
    try:
        with Monitor.open(Path(qmp)) as monitor:
            backup(repository, monitor, Options(scratch=scratch, agent=agent))
    except LunrError:
        if qemu is None:
            raise
        sys.exit(3)


if __name__ == "__main__":
    main()
