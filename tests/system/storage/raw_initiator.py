"""An initiator whose login stops where a test wants it to: iSCSI by hand (RFC 7143)."""

from __future__ import annotations

import hashlib
import re
import socket
import struct

from lunr.storage.targets.base import Export
from tests.support.waiting import PATIENCE
from tests.system.storage.iscsi import INITIATOR

_HEADER = 48
_LOGIN, _COMMAND = 0x43, 0x01
#: Stages of a login, and the bit that asks for the next one.
_SECURITY, _OPERATIONAL, _FULL = 0, 1, 3
_TRANSIT = 0x80
_FINAL_READ = 0xC0
_READ_10 = 0x28


class RawInitiator:
    """One connection to the export."""

    def __init__(self, portal: str, export: Export) -> None:
        host, _, port = portal.rpartition(":")
        self._export = export
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._challenge: dict[str, str] = {}
        self._stage = _SECURITY

    def close(self) -> None:
        """Leave the connection."""
        self._socket.close()

    def begin_login(self) -> None:
        """Log in up to the challenge of CHAP: the target has looked whether it is open."""
        self._log_in(
            InitiatorName=INITIATOR,
            TargetName=self._export.iqn,
            SessionType="Normal",
            AuthMethod="CHAP",
        )
        self._challenge = self._log_in(CHAP_A="5")

    def finish_login(self) -> None:
        """Answer the challenge, and be in the full feature phase."""
        number = int(self._challenge["CHAP_I"])
        challenge = bytes.fromhex(self._challenge["CHAP_C"].removeprefix("0x"))
        secret = self._export.password.encode()
        response = hashlib.md5(bytes([number]) + secret + challenge, usedforsecurity=False)
        answer = {"CHAP_N": self._export.username, "CHAP_R": f"0x{response.hexdigest()}"}
        self._log_in(_TRANSIT | _SECURITY << 2 | _OPERATIONAL, **answer)
        while self._stage != _FULL:  # the target has parameters of its own to tell
            self._log_in(_TRANSIT | _OPERATIONAL << 2 | _FULL)

    def send_read(self) -> None:
        """Ask for the first block, and wait for nothing."""
        header = struct.pack(">BBHI", _COMMAND, _FINAL_READ, 0, 0)
        header += bytes([0, self._export.lun]) + bytes(6)
        header += struct.pack(">IIII", 2, 512, 1, 1)
        header += struct.pack(">BBIBHB", _READ_10, 0, 0, 0, 1, 0) + bytes(6)
        self._socket.sendall(header)

    def is_cut_off(self) -> bool:
        """Whether the target closes the connection; False: it answers the read.

        Raises:
            TimeoutError: it does neither.
        """
        try:
            return not self._socket.recv(1)
        except ConnectionError:
            return True

    def _log_in(self, flags: int = _SECURITY << 2, **texts: str) -> dict[str, str]:
        text = b"".join(f"{name}={value}\0".encode() for name, value in texts.items())
        header = struct.pack(">BBBBI", _LOGIN, flags, 0, 0, len(text))
        header += bytes.fromhex("80 00 00 00 00 01 00 00")  # ISID, TSIH
        header += struct.pack(">IHHII", 1, 0, 0, 1, 0) + bytes(16)
        self._socket.sendall(header + text + bytes(-len(text) % 4))
        answer = self._receive(_HEADER)
        length = int.from_bytes(answer[5:8], "big")
        body = self._receive(length + -length % 4)[:length]
        assert answer[36:38] == b"\0\0", f"the login failed: {answer[36:38].hex()}"
        if answer[1] & _TRANSIT:
            self._stage = answer[1] & 3
        return dict(re.findall(r"([^=\0]+)=([^\0]*)", body.decode()))

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            assert piece, "the target closed the connection"
            data += piece
        return data
