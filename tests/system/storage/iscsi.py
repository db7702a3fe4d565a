"""A real initiator: libiscsi's tools, and qemu's."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from lunr.storage.targets.base import Export as Export
from tests.support.waiting import PATIENCE

INITIATOR = "iqn.2026-11.test:initiator"


def url(portal: str, export: Export, password: str | None = None) -> str:
    secret = export.password if password is None else password
    return f"iscsi://{export.username}%{secret}@{portal}/{export.iqn}/{export.lun}"


def inquire(
    portal: str, export: Export, initiator: str = INITIATOR, password: str | None = None
) -> str:
    """What a login with this name and secret leads to: the disk's serial number, or the refusal."""
    done = subprocess.run(
        ["iscsi-inq", "-i", initiator, "-e", "1", "-c", "128", url(portal, export, password)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


def admits(
    portal: str, export: Export, initiator: str = INITIATOR, password: str | None = None
) -> bool:
    said = inquire(portal, export, initiator, password)
    assert ("Unit Serial Number" in said) != ("Failed" in said), said
    return "Unit Serial Number" in said


@contextlib.contextmanager
def session(
    portal: str, export: Export, initiator: str = INITIATOR
) -> Iterator[subprocess.Popen[str]]:
    """A session that stays: ``qemu-io``, which takes commands on its input."""
    host, _, port = portal.rpartition(":")
    image = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={host}:{port},"
        f"file.target={export.iqn},file.lun={export.lun},file.user={export.username},"
        f"file.password={export.password},file.initiator-name={initiator}"
    )
    with subprocess.Popen(
        ["qemu-io", "--image-opts", image],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            read(process)
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> None:
    """Have a session read; return when it has."""
    begin_read(process)
    wait_read(process)


def begin_read(process: subprocess.Popen[str]) -> None:
    """Have a session read; see :func:`wait_read`."""
    assert process.stdin is not None
    process.stdin.write("read 0 512\n")
    process.stdin.flush()


def wait_read(process: subprocess.Popen[str]) -> None:
    """Return when a read that was begun has been answered."""
    assert process.stdout is not None
    # A session that gets no answer says nothing, and would be waited for without end.
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        while "read 512/512" not in line:
            assert line, "qemu-io ended, or had no answer"
            assert "failed" not in line, line
            line = process.stdout.readline()
    finally:
        watchdog.cancel()
