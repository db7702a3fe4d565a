"""The one place that runs a command."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from lunr.common import errors

_log = logging.getLogger(__name__)

#: Debian's package of each command that lunr runs on a node.
PACKAGES = {
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nice": "coreutils",
    "ionice": "util-linux",
}

#: A daemon's PATH often lacks the folders of the administration tools.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"

#: Seconds that a killed command is given to go; one stuck in the kernel does not.
_KILL_WAIT = 5.0


class CommandFailed(errors.LunrError):
    """`{command}` failed with exit code {code}: {stderr}"""

    code = "command_failed"


class CommandTimeout(errors.LunrError):
    """`{command}` did not end within {timeout:g} seconds and was killed."""

    code = "command_timeout"
    retry = True


class CommandStuck(CommandTimeout):
    """`{command}` has not ended for {timeout:g} seconds and can't be killed: a device hangs."""

    code = "command_stuck"


class CommandMissing(errors.LunrError):
    """The command {program} is not installed: apt-get install {package}"""

    code = "command_missing"


@dataclass(frozen=True)
class Result:
    """What a command that ended as it should left."""

    code: int
    stdout: str
    stderr: str


def environment() -> dict[str, str]:
    """The environment commands run in: this one's, with the C locale and a full PATH."""
    return {**os.environ, "LC_ALL": "C", "PATH": _PATH}


def missing(program: str) -> CommandMissing:
    """The error that says which package `program` is in."""
    return CommandMissing(program=program, package=PACKAGES.get(program, program))


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    data: bytes = b"",
    timeout: float = 60.0,
    accept: Collection[int] = (0,),
) -> Result:
    """Run `argv` to its end and return what it said; it gets `data` on standard input.

    Args:
        argv: the program and its arguments; no shell is involved.
        data: its standard input; empty is ``/dev/null``.
        timeout: seconds after which it and its children are killed.
        accept: exit codes that are not a failure.

    Raises:
        CommandFailed: its exit code is not in `accept`.
        CommandTimeout: it had to be killed.
        CommandStuck: it could not even be killed.
        CommandMissing: there is no such program.
    """
    command = shlex.join(os.fspath(word) for word in argv)
    _log.debug("+ %s", command)
    started = time.monotonic()
    with _memory("stdin") as given, _memory("stdout") as out, _memory("stderr") as err:
        given.write(data)
        given.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                stdin=given if data else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise missing(os.fspath(argv[0])) from error
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            fate = CommandTimeout if _kill(process) else CommandStuck
            raise _logged(fate(command=command, timeout=timeout)) from error
        except BaseException:
            _kill(process)
            raise
        result = Result(process.returncode, _text(out), _text(err))
    if result.code not in accept:
        said = (result.stderr or result.stdout).strip()[-2000:]
        raise _logged(CommandFailed(command=command, code=result.code, stderr=said))
    _log.debug("%s ended after %.3f s", argv[0], time.monotonic() - started)
    return result


def _memory(name: str) -> BinaryIO:
    """A file in memory, for what goes into a command or comes out of it.

    Unlike a pipe it has no end that somebody must wait for: a daemon that the
    command left behind (LVM starts dmeventd) keeps its descriptors for ever.
    """
    return os.fdopen(os.memfd_create(name), "w+b")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _logged(error: errors.LunrError) -> errors.LunrError:
    _log.warning("%s", error)
    return error


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill the command with its children; returns whether it is gone.

    One that the kernel holds is not waited for.
    """
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_KILL_WAIT)
    except subprocess.TimeoutExpired:
        return False
    return True
