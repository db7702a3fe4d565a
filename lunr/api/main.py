"""``lunr-api``: serve the API until told to end.

Nothing that uses threads or sockets is imported before eventlet has replaced
them; that is why `main` imports the rest.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from lunr.common import concurrency

_BACKLOG = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lunr-api --config-file FILE``; the exit status is 0 after SIGTERM or SIGINT."""
    concurrency.patch()
    from lunr.common import config, errors, log

    try:
        conf = config.load(argv, prog="lunr-api")
        log.setup(conf.log_level, conf.log_style)
        _serve(conf)
    except errors.LunrError as error:
        sys.stderr.write(f"lunr-api: {error}\n")
        return 1
    return 0


def _serve(conf: Any) -> None:
    from lunr.api.app import build
    from lunr.common import errors

    log = logging.getLogger("lunr.api")
    app, services = build(conf)
    sock = listen(conf.api.bind_host, conf.api.bind_port)
    stopping = False

    def stop(_signal: int, _frame: Any) -> None:
        # No exception: it would hit whichever request is at work. The server
        # falls out of accept(), and the requests that are under way end.
        nonlocal stopping
        stopping = True
        services.context.notifier.closed = True
        sock.shutdown(socket.SHUT_RDWR)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host, port = sock.getsockname()[:2]
    log.info("The API listens on http://%s:%s", f"[{host}]" if ":" in host else host, port)
    try:
        concurrency.serve(sock, app, debug=False)
    except OSError as error:
        if not stopping:
            raise errors.Unavailable(what="The listening socket", reason=str(error)) from error
    finally:
        services.close()
    log.info("The API has ended")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port` (0: a free one).

    Raises:
        errors.ConfigError: it can't be had; the message says why.
    """
    from lunr.common import errors

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise errors.ConfigError(
            reason=f"[api] bind_host {host}, bind_port {port}: {error.strerror}"
        ) from error
    # Accepted sockets have it from here. Without it, an answer that is sent in
    # two pieces waits 40 ms for the acknowledgement of the first.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


if __name__ == "__main__":
    sys.exit(main())
