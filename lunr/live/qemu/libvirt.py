"""The QMP sockets that domains of libvirt have for lunr.

libvirt uses the first monitor itself, and passes neither several commands in one message, which
QEMU completes even if lunr dies, nor open files. A cut needs both. So a domain gets a second
monitor (docs/live.md), and libvirt only tells its path.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from lunr.live import errors

_ARG = "{http://libvirt.org/schemas/domain/qemu/1.0}arg"

#: Seconds that libvirt has to answer.
_PATIENCE = 30.0


def socket_of(domain: str) -> Path:
    """The QMP socket that `domain` has besides libvirt's own.

    Raises:
        errors.NoSuchDomain: libvirt is missing, does not know it, or it has no such socket.
    """
    # LIBVIRT_DEFAULT_URI selects the libvirt.
    argv = ["virsh", "--quiet", "dumpxml", "--domain", domain]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        reason = "virsh is not installed: libvirt-clients."
        raise errors.NoSuchDomain(domain=domain, reason=reason) from error
    except subprocess.TimeoutExpired as error:
        reason = f"libvirt has not answered for {_PATIENCE:g} seconds."
        raise errors.NoSuchDomain(domain=domain, reason=reason) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else "virsh does not say why"
        raise errors.NoSuchDomain(domain=domain, reason=f"{reason}.")
    path = parse(done.stdout)
    if path is None:
        reason = "it has no second QMP socket: docs/live.md has the lines for its definition."
        raise errors.NoSuchDomain(domain=domain, reason=reason)
    return path


def parse(definition: str) -> Path | None:
    """The socket in the XML of a domain, as libvirt gives it."""
    words = [
        arg.get("value", "")
        for arg in ElementTree.fromstring(definition).iter(_ARG)  # noqa: S314 - libvirt's own
    ]
    for option, value in itertools.pairwise(words):
        scheme, _, rest = value.partition(":")
        if option == "-qmp" and scheme == "unix":
            return Path(rest.partition(",")[0])
    return None
