"""The kernel's own iSCSI initiator, by open-iscsi's tools; only for the VM, which is ours alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Protocol

from tests.support.waiting import PATIENCE, wait_until


class Exported(Protocol):
    """What an initiator must know of an export (the API's record of it has it all)."""

    @property
    def target_iqn(self) -> str: ...
    @property
    def target_portal(self) -> str: ...
    @property
    def auth_username(self) -> str | None: ...
    @property
    def auth_password(self) -> str | None: ...


def sh(*argv: str | Path, check: bool = True) -> str:
    """Run a command and return what it printed; a failure shows all of it."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}: {said}"
    return said


class Initiator:
    """iscsid under the name `name`; `close` logs out of everything."""

    def __init__(self, name: str) -> None:
        self.name = name
        Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={name}\n")
        for module in ("iscsi_tcp", "sd_mod"):
            sh("modprobe", module)
        self._daemon = self._start()
        wait_until(lambda: not sh("iscsiadm", "-m", "session", check=False).count("connect"))

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["iscsid", "-f"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # when it is told to end it tells its whole group
        )

    def wait_back(self) -> None:
        """Wait until all sessions are back, whose target was away.

        iscsid never gets one back whose target closed the connection in the middle of that
        (open-iscsi's issue 387): then it is started anew, as an operator would.
        """
        with contextlib.suppress(AssertionError):
            wait_until(self._all_are_in, interval=1.0)
            return
        self._daemon.kill()
        self._daemon.wait(PATIENCE)
        self._daemon = self._start()

    @staticmethod
    def _all_are_in() -> bool:
        states = Path("/sys/class/iscsi_session").glob("session*/state")
        return all(state.read_text().strip() == "LOGGED_IN" for state in states)

    def login(self, export: Exported) -> Path:
        """Log in and return the disk's device, when it is there.

        Raises:
            AssertionError: the login was refused.
        """
        node = self._node(export)
        sh(*node, "-o", "new")
        for setting, value in (
            ("authmethod", "CHAP"),
            ("username", str(export.auth_username)),
            ("password", str(export.auth_password)),
        ):
            sh(*node, "-o", "update", "-n", f"node.session.auth.{setting}", "-v", value)
        sh(*node, "--login")
        device = wait_until(lambda: self._usable(export), what=f"a disk for {export.target_iqn}")
        assert device is not None
        return device

    def _usable(self, export: Exported) -> Path | None:
        """A disk of the target's that can be opened: the kernel shows it a moment before that."""
        for device in self.devices(export):
            with contextlib.suppress(OSError):
                os.close(os.open(device, os.O_RDONLY))
                return device
        return None

    def devices(self, export: Exported) -> list[Path]:
        """The disks that the sessions with the target have brought."""
        return [
            Path("/dev", block.name)
            for session in Path("/sys/class/iscsi_session").glob("session*")
            if (session / "targetname").read_text().strip() == export.target_iqn
            for block in session.glob("device/target*/*/block/*")
        ]

    def rescan(self, export: Exported) -> None:
        """Look at the disk's size anew; nothing comes of it while the session is down."""
        sh(*self._node(export), "--rescan", check=False)

    def logout(self, export: Exported) -> None:
        """Log out, and forget the target."""
        sh(*self._node(export), "--logout")
        sh(*self._node(export), "-o", "delete")

    def close(self) -> None:
        """Log out of all, and end iscsid."""
        sh("iscsiadm", "-m", "node", "--logoutall=all", check=False)
        sh("iscsiadm", "-m", "node", "-o", "delete", check=False)
        self._daemon.terminate()
        self._daemon.wait(PATIENCE)

    @staticmethod
    def _node(export: Exported) -> list[str]:
        return ["iscsiadm", "-m", "node", "-T", export.target_iqn, "-p", export.target_portal]
