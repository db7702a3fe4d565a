"""A guard process that outlives its parent, to restore the virtual machine.

Between `stop` and `cont` the guest stands still. If lunr were killed there, the guest would
never run again, and QEMU drops the commands that a client sent just before it hung up. So lunr
shares the connections to QEMU and to the guest's agent with a small process. When the
standard input of the guard closes without a good-bye, the guard resumes the guest, thaws its
file systems, and removes all that lunr has added. lunr says good-bye when it has done all that
itself.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import subprocess
import sys

from lunr.common import log
from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.qemu import cleanup
from lunr.live.qemu.guest_agent import Agent
from lunr.live.qemu.qmp import LineReader, Monitor

logger = logging.getLogger(__name__)

_READY, _GOOD_BYE = b"!", b"q"

#: Seconds that the guard has to start, and to end.
_PATIENCE = 30.0

#: Seconds for which the guard tells a guest to thaw until the guest confirms it.
_THAWING = 600.0


class Guard:
    """The guard process, for its parent. It runs during the context."""

    def __init__(self, monitor: Monitor, agent: Agent | None = None) -> None:
        """Prepare to share the connections of `monitor` and `agent`."""
        self._descriptors = [monitor.fileno(), *([] if agent is None else [agent.fileno()])]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        self._process = subprocess.Popen(
            # -P: import no module from the current folder.
            [sys.executable, "-P", "-m", __name__, *map(str, self._descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # else a failed write is repeated at the close
            pass_fds=self._descriptors,
            start_new_session=True,  # Ctrl-C must not reach the guard
        )
        assert self._process.stdout is not None
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000) or self._process.stdout.read(1) != _READY:
            self._process.kill()  # it has nothing to do yet
            self._await_end()
            raise errors.CannotBackUp(reason="the process that guards it does not start.")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._await_end()

    def release(self) -> None:
        """Say good-bye: the machine is restored."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.write(_GOOD_BYE)

    def check(self) -> None:
        """Make sure that the guard runs.

        Raises:
            errors.CannotBackUp: it does not.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise errors.CannotBackUp(reason="the process that guards it is gone.")

    def _await_end(self) -> None:
        """Close its input and wait; a guard that needs longer goes on alone."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            logger.error("The machine is not restored yet; process %d works on it.", process.pid)  # noqa: TRY400 - a sentence is enough


def main() -> int:
    """Watch over the parent; the arguments are the connections' descriptors."""
    log.setup()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager signals all processes at once
    monitor, *agents = (
        LineReader(socket.socket(fileno=int(number)), "of the guarded machine")
        for number in sys.argv[1:]
    )
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    if sys.stdin.buffer.read(1) == _GOOD_BYE:
        return 0
    logger.warning("The backup ended unexpectedly: restoring the virtual machine.")
    agent = Agent(agents[0]) if agents else None
    try:
        cleanup.restore_machine(Monitor(monitor), agent, _THAWING)
    except LunrError as error:
        logger.error("%s", error)  # noqa: TRY400 - a sentence is enough
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
