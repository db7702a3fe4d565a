"""From one master key to the keys of one repository.

Every hash that names or checks something in a store is a keyed BLAKE3, so that
a tenant can't find out what another has stored, and nobody without the key can
make an object that passes. The keys are derived with BLAKE3's ``derive_key``
(section 2.3 of its specification); the context strings below are part of the
storage format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from blake3 import blake3

from lunr.common import ids

KEY_SIZE = 32
_CONTEXT = "lunr 2026-11 backup format 1 "

#: Used when no key is given: such backups are checked, but not secret from
#: whoever knows a volume's content and wants to see whether it is stored.
PUBLIC_MASTER = blake3(b"lunr public master key, version 1").digest()


class Cipher(IntEnum):
    """What an object is encrypted with, as its header says."""

    NONE = 0
    AES_256_GCM = 1


#: By the names that options have for them.
CIPHERS = {"aes-256-gcm": Cipher.AES_256_GCM, "none": Cipher.NONE}


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
        material = master + repository.encode()
        return blake3(material, derive_key_context=_CONTEXT + purpose).digest(length=length)

    return Keys(
        block=key("block"),
        chunk=key("chunk"),
        segment=key("segment"),
        root=key("root"),
        cipher=key("cipher"),
        id=key("key id", 8).hex(),
        writes=writes,
    )


def master_id(master: bytes) -> str:
    """What people call a master key by; it tells nothing about the key."""
    return blake3(master, derive_key_context=_CONTEXT + "master id").digest(length=8).hex()
