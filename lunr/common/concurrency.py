"""The one place where eventlet is imported.

The two servers call :func:`patch` first. All other code uses plain threads, locks, sockets
and subprocesses, which eventlet replaces by green ones. To run lunr without eventlet, replace
the functions of this module.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

WSGIApp = Callable[..., Iterable[bytes]]
T = TypeVar("T")

_patched = False


def patch() -> None:
    """Make the standard library cooperative. Call it before all other imports of lunr."""
    # psycopg 3 blocks every green thread without this; psycopg2 does not need it.
    os.environ.setdefault("PSYCOPG_WAIT_FUNC", "wait_select")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import eventlet
        import eventlet.green.subprocess as green
    eventlet.monkey_patch()
    # eventlet's Popen.communicate raises a TimeoutExpired of its own, which callers don't catch.
    green.subprocess_orig.TimeoutExpired = green.TimeoutExpired
    global _patched
    _patched = True


def blocking(function: Callable[..., T], *args: Any) -> T:
    """Return `function(*args)`, while the other threads go on.

    eventlet can't make fsync(2), ioctl(2) and the like cooperative: called directly, they stop
    every green thread until the disk has answered.
    """
    if not _patched:
        return function(*args)
    import eventlet.tpool

    result: T = eventlet.tpool.execute(function, *args)
    return result


def serve(sock: socket.socket, app: WSGIApp, max_requests: int = 1024, **options: Any) -> None:
    """Serve `app` on the listening socket `sock` until the process ends.

    Args:
        sock: a bound, listening TCP socket.
        app: a WSGI application (PEP 3333).
        max_requests: how many requests may be in progress at once; more wait.
        options: passed to ``eventlet.wsgi.server``.
    """
    import eventlet.wsgi

    eventlet.wsgi.server(
        sock,
        app,
        max_size=max_requests,
        log=logging.getLogger("lunr.wsgi"),
        log_output=False,
        socket_timeout=60,
        **options,
    )
