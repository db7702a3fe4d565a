"""Secrets that must be read again (CHAP), encrypted before they reach the database."""

from __future__ import annotations

import base64
import secrets
import stat
from functools import cached_property
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lunr.common import errors

#: Without the letters and digits that people mistake for each other.
_ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
#: Microsoft's initiator takes CHAP secrets of 12 to 16 characters, and tgt names of any.
_LENGTH = 16


class SecretBox:
    """Encrypts with the key in a file; the file is read when it is first needed.

    Args:
        path: the file ([api] secret_key_file): at least 32 bytes, mode 0600.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    @cached_property
    def _fernet(self) -> Fernet:
        try:
            mode = self._path.stat().st_mode
            content = self._path.read_bytes().strip()
        except OSError as error:
            raise errors.ConfigError(
                reason=f"[api] secret_key_file {self._path}: {error.strerror}; "
                "make one with `lunr-manage key make`"
            ) from error
        if stat.S_IMODE(mode) & 0o077:
            raise errors.ConfigError(
                reason=f"[api] secret_key_file {self._path} can be read by others than its owner; "
                "chmod 0600 it"
            )
        if len(content) < 32:
            raise errors.ConfigError(
                reason=f"[api] secret_key_file {self._path} is too short for a key; "
                "make one with `lunr-manage key make`"
            )
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"lunr chap").derive(content)
        return Fernet(base64.urlsafe_b64encode(key))

    def check(self) -> None:
        """Read the key now.

        Raises:
            errors.ConfigError: there is none that can be used.
        """
        _ = self._fernet

    def seal(self, secret: str) -> str:
        """`secret`, encrypted."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """What :meth:`seal` was given.

        Raises:
            errors.ConfigError: it was sealed with another key.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as error:
            raise errors.ConfigError(
                reason=f"{self._path} is not the key that the database's secrets were sealed with"
            ) from error


def chap_secret() -> str:
    """A fresh CHAP user name or secret: 16 characters, about 92 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
