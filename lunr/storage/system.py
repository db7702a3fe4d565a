"""The one place that runs a command."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO

from lunr.common import errors

_log = logging.getLogger(__name__)

_Argv = Sequence[str | os.PathLike[str]]

#: Debian's package of each command that lunr runs on a node.
PACKAGES = {
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nice": "coreutils",
    "ionice": "util-linux",
    "modprobe": "kmod",
    "dmsetup": "dmsetup",
    **dict.fromkeys(("lvs", "vgs", "pvs", "lvcreate", "lvchange", "lvconvert"), "lvm2"),
    **dict.fromkeys(("lvextend", "lvreduce", "lvrename", "lvremove"), "lvm2"),
    **dict.fromkeys(("thin_check", "thin_dump"), "thin-provisioning-tools"),
}

#: A daemon's PATH often lacks the folders of the administration tools.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"

#: Seconds that a killed command is given to go; one stuck in the kernel does not.
_KILL_WAIT = 5.0

#: Bytes that are read from a command at once.
_PIECE = 64 << 10


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
    # LVM complains of descriptors that it is given on purpose.
    return {**os.environ, "LC_ALL": "C", "PATH": _PATH, "LVM_SUPPRESS_FD_WARNINGS": "1"}


def missing(program: str) -> CommandMissing:
    """The error that says which package `program` is in."""
    return CommandMissing(program=program, package=PACKAGES.get(program, program))


def need(program: str) -> None:
    """Make sure that `program` is installed.

    Raises:
        CommandMissing: it is not.
    """
    if shutil.which(program, path=_PATH) is None:
        raise missing(program)


def run(
    argv: _Argv,
    *,
    data: bytes = b"",
    timeout: float = 60.0,
    accept: Collection[int] = (0,),
    inherit: Sequence[int] = (),
) -> Result:
    """Run `argv` to its end and return what it said; it gets `data` on standard input.

    Args:
        argv: the program and its arguments; no shell is involved.
        data: its standard input; empty is ``/dev/null``.
        timeout: seconds after which it and its children are killed.
        accept: exit codes that are not a failure.
        inherit: descriptors that it shares with this process; all others are closed for it.

    Raises:
        CommandFailed: its exit code is not in `accept`.
        CommandTimeout: it had to be killed.
        CommandStuck: it could not even be killed.
        CommandMissing: there is no such program.
    """
    started = time.monotonic()
    with _memory("stdin") as given, _memory("stdout") as out, _memory("stderr") as err:
        given.write(data)
        given.seek(0)
        process = _start(
            argv,
            stdin=given if data else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            inherit=inherit,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise _killed(process, argv, timeout) from error
        except BaseException:
            _kill(process)
            raise
        result = Result(process.returncode, _text(out), _text(err))
    _check(argv, result, accept)
    _log.debug("%s ended after %.3f s", argv[0], time.monotonic() - started)
    return result


def stream(argv: _Argv, *, timeout: float = 60.0) -> Generator[bytes, None, None]:
    """Run `argv` and yield what it writes to standard output, piece by piece, as it comes.

    For output of any length: only a piece (64 KiB at most) is in memory. When
    the generator is closed before its end, the command is killed.

    Args:
        argv: the program and its arguments; no shell is involved.
        timeout: seconds that it has in all, those included that the caller
            takes between two pieces.

    Raises:
        CommandFailed: it wrote all this and then failed.
        CommandTimeout, CommandStuck, CommandMissing: as `run` does.
    """
    deadline = time.monotonic() + timeout
    with _memory("stderr") as err:
        process = _start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err)
        assert process.stdout is not None
        with process.stdout:
            try:
                yield from _pieces(process.stdout, deadline)
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, TimeoutError) as error:
                raise _killed(process, argv, timeout) from error
            except BaseException:  # also when the caller wants no more
                _kill(process)
                raise
        _check(argv, Result(process.returncode, "", _text(err)), (0,))


def _pieces(pipe: IO[bytes], deadline: float) -> Iterator[bytes]:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            if not (piece := os.read(pipe.fileno(), _PIECE)):
                return
            yield piece
        raise TimeoutError


def _start(
    argv: _Argv,
    *,
    stdin: int | BinaryIO,
    stdout: int | BinaryIO,
    stderr: BinaryIO,
    inherit: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    _log.debug("+ %s", _command(argv))
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(),
            start_new_session=True,
            pass_fds=inherit,
        )
    except FileNotFoundError as error:
        raise missing(os.fspath(argv[0])) from error


def _command(argv: _Argv) -> str:
    return shlex.join(os.fspath(word) for word in argv)


def _check(argv: _Argv, result: Result, accept: Collection[int]) -> None:
    if result.code not in accept:
        said = (result.stderr or result.stdout).strip()[-2000:]
        failed = CommandFailed(command=_command(argv), code=result.code, stderr=said)
        raise _logged(failed)


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


def _killed(process: subprocess.Popen[bytes], argv: _Argv, timeout: float) -> errors.LunrError:
    """Kill the command that took too long; the error that says so."""
    fate = CommandTimeout if _kill(process) else CommandStuck
    return _logged(fate(command=_command(argv), timeout=timeout))


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
