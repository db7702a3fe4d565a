"""A process that outlives its parent, to leave the virtual machine as it was.

Between `stop` and `cont` the guest stands still. If we were killed there it would stand
for ever, and QEMU drops the commands that a client sent just before it hung up. So the
connections to QEMU and to the guest's agent are shared with a small process: when our end
of its standard input closes before we said good-bye, it thaws the guest's file systems, lets
the guest run, and takes down what we have put up.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType

from lunr.common import log
from lunr.common.errors import LunrError
from lunr.live import errors, leftovers
from lunr.live.agent import Agent
from lunr.live.qmp import Lines, Monitor

logger = logging.getLogger(__name__)

_READY, _CUTTING, _RUNNING, _GOOD_BYE = b"!", b"c", b"r", b"q"

#: Seconds that it has to start.
_PATIENCE = 30.0


class Guard:
    """The process, as seen from its parent. It runs while the context does."""

    def __init__(self, monitor: Monitor, agent: Agent | None = None) -> None:
        """Prepare to share the connections of `monitor` and `agent`."""
        self._descriptors = [monitor.fileno(), *([] if agent is None else [agent.fileno()])]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, self._descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._descriptors,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != _READY:
            self._end()
            raise errors.CannotBackUp(reason="the process that guards it does not start.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._tell(_GOOD_BYE)
        self._end()

    def _tell(self, word: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(word)
        self._process.stdin.flush()

    def _end(self) -> None:
        assert self._process is not None
        self._process.communicate()

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """While this lasts, the guest may be stopped or frozen, and must not stay so.

        Raises:
            errors.CannotBackUp: there is no guard any more.
        """
        try:
            self._tell(_CUTTING)
        except BrokenPipeError as error:
            raise errors.CannotBackUp(reason="the process that guards it is gone.") from error
        yield
        # Not after an error: then nobody knows, and one `cont` too many does no harm.
        with contextlib.suppress(BrokenPipeError):
            self._tell(_RUNNING)


def rescue(monitor: Monitor, agent: Agent | None, *, cutting: bool) -> None:
    """Do what the parent would have done.

    Raises:
        LunrError: QEMU is gone, or does not let go of something.
    """
    if cutting:
        monitor.execute("cont")
        if agent is not None:
            try:
                agent.thaw()
            except errors.FreezeFailed as error:
                logger.error("%s", error)  # noqa: TRY400 - a sentence is enough
    leftovers.clear(monitor)


def main() -> int:
    """Watch over the parent; the arguments are the connections' descriptors."""
    log.setup()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager tells all processes at once
    monitor, *agents = (
        Lines(socket.socket(fileno=int(number)), "of the guarded machine")
        for number in sys.argv[1:]
    )
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    cutting = False
    while word := sys.stdin.buffer.read(1):
        if word == _GOOD_BYE:
            return 0
        cutting = word == _CUTTING
    logger.warning("The backup was killed: leaving the virtual machine as it was.")
    try:
        rescue(Monitor(monitor), Agent(agents[0]) if agents else None, cutting=cutting)
    except LunrError as error:
        logger.error("%s", error)  # noqa: TRY400 - a sentence is enough
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
