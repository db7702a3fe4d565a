"""From one master key to the keys of one repository.

Every hash that names or checks something in a store is a keyed BLAKE3, so that
a tenant can't find out what another has stored, and nobody without the key can
make an object that passes. The keys are derived with BLAKE3's ``derive_key``
(section 2.3 of its specification); the context strings below are part of the
storage format.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from blake3 import blake3

from lunr.backup import errors
from lunr.common import ids

KEY_SIZE = 32

#: Used when no key is given: such backups are checked, but not secret from
#: whoever knows a volume's content and wants to see whether it is stored.
PUBLIC_MASTER = blake3(b"lunr public master key, version 1").digest()


class Cipher(IntEnum):
    """What an object is encrypted with, as its header says."""

    NONE = 0
    AES_256_GCM = 1


@dataclass(frozen=True)
class Keys:
    """The keys of one repository. None is ever stored; ``id`` tells them apart in a root.

    ``writes`` is how new objects are encrypted; either kind can be read.
    """

    block: bytes = field(repr=False)
    chunk: bytes = field(repr=False)
    segment: bytes = field(repr=False)
    root: bytes = field(repr=False)
    cipher: bytes = field(repr=False)
    id: str
    writes: Cipher = Cipher.AES_256_GCM


def derive(master: bytes, repository: str, writes: Cipher = Cipher.AES_256_GCM) -> Keys:
    """The keys of `repository` (an id) under the 32-byte `master` key."""
    ids.check(repository, "repository")

    def key(purpose: str, length: int = KEY_SIZE) -> bytes:
        context = f"lunr 2026-11 backup format 1 {purpose}"
        return blake3(master + repository.encode(), derive_key_context=context).digest(
            length=length
        )

    return Keys(
        block=key("block"),
        chunk=key("chunk"),
        segment=key("segment"),
        root=key("root"),
        cipher=key("cipher"),
        id=key("key id", 8).hex(),
        writes=writes,
    )


def parse(text: str, source: str) -> bytes:
    """The master key in `text`, 64 hexadecimal digits; `source` is named in the error.

    Raises:
        errors.BadKey: it is something else.
    """
    try:
        master = bytes.fromhex(text.strip())
    except ValueError:
        master = b""
    if len(master) != KEY_SIZE:
        raise errors.BadKey(source=source, reason="it must be 64 hexadecimal digits.")
    return master


def load(path: Path | None) -> bytes:
    """The master key in the file `path`, or the public one without a path.

    Raises:
        errors.BadKey: the file can't be read, holds no key, or others may read it.
    """
    if path is None:
        return PUBLIC_MASTER
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = file.read(4096)
    except OSError as error:
        raise errors.BadKey(source=path, reason=f"{error.strerror}.") from error
    if mode & 0o077:
        raise errors.BadKey(source=path, reason=f"others may read it (mode {mode:o}): chmod 600.")
    return parse(text, str(path))
