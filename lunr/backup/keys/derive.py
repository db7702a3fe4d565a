"""The keys of a repository, derived from a master key.

Every hash that names or checks an object in a store is a keyed BLAKE3: a tenant can't find
out what another has stored, and an object made without the key fails its check.
The keys are derived with BLAKE3's ``derive_key``
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

#: Used when no key is given. Such backups are checked, but anybody who has a volume's content
#: can find out whether it is stored.
PUBLIC_MASTER = blake3(b"lunr public master key, version 1").digest()


class Cipher(IntEnum):
    """The encryption of an object, as its header says."""

    NONE = 0
    AES_256_GCM = 1


#: The ciphers by their names in options.
CIPHERS = {"aes-256-gcm": Cipher.AES_256_GCM, "none": Cipher.NONE}


@dataclass(frozen=True)
class Keys:
    """The keys of one repository. They are never stored; a root names them by their ``id``.

    ``writes`` is the cipher of new objects; objects of every cipher can be read.
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
    """The public id of a master key, from which the key can't be derived."""
    return blake3(master, derive_key_context=_CONTEXT + "master id").digest(length=8).hex()
