"""AES-256-GCM (NIST SP 800-38D) of the parts of an object after its header.

Every object has a key of its own, derived from the repository's, the object's
plain header, and its content hash and token. Within an object every part has
its number, which is its nonce. So a pair of key and nonce repeats only for the same part,
of the same content, written by the same session with the same compression: for the very same
bytes. A changed header, a part in another place and an object under another's name each need
another key or nonce: decryption fails as it does for any changed byte.
"""

from __future__ import annotations

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lunr.backup import errors
from lunr.backup.format.names import Buffer, Ref
from lunr.backup.keys.derive import Keys

#: Bytes that encryption adds to every part.
TAG_SIZE = 16
#: The number of the part that is an object's index; blocks count from 0.
INDEX = (1 << 96) - 1


class ObjectCipher:
    """Encrypts and decrypts the parts of one object."""

    def __init__(self, header: bytes, ref: Ref, keys: Keys) -> None:
        """Derive the key of the object `ref`, which begins with `header`."""
        self._aead = AESGCM(blake3(header + ref.hash + ref.token, key=keys.cipher).digest())

    def encrypt(self, number: int, plain: Buffer, out: memoryview) -> None:
        """Write part `number` to `out`: the encrypted bytes of `plain`, and a tag of 16."""
        self._aead.encrypt_into(_nonce(number), memoryview(plain), None, out)

    def decrypt(
        self, number: int, part: Buffer, name: str, out: memoryview | None = None
    ) -> memoryview:
        """The plain bytes of part `number`, written to `out` if that is given.

        Raises:
            errors.CorruptObject: the part was changed; `name` is the object's.
        """
        try:
            if out is None:
                out = memoryview(bytearray(len(part) - TAG_SIZE))
            self._aead.decrypt_into(_nonce(number), memoryview(part), None, out)
        except (InvalidTag, ValueError) as error:  # ValueError: it has another length
            what = "its index" if number == INDEX else f"part {number}"
            raise errors.CorruptObject(
                name=name, reason=f"{what} is not what was encrypted there."
            ) from error
        return out


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")
