"""Master keys: where they are kept. The first of several writes, the others are still read.

A backup's root tells which key it needs. What a key wrote has names that no
other key gives, so the first backup of a volume after a change of the key is
full, and nothing is shared between backups of different keys.

Keys are in a file, one a line as 64 hexadecimal digits, or in OpenStack
Barbican, one or more secrets of 32 bytes or of such lines.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from lunr.backup import errors
from lunr.backup.keys import derive
from lunr.common import ids

#: The master keys of a node, the one that writes first.
Masters = tuple[bytes, ...]

#: Fetches the bytes of a secret by its id.
Fetch = Callable[[str], bytes]

_LARGEST_FILE = 1 << 16


def open_master_keys(source: str, fetch: Fetch) -> Masters:
    """The master keys at `source`: ``file:/PATH``, or ``barbican:ID`` or ``barbican:ID,ID``.

    Args:
        source: where they are.
        fetch: asks Barbican for a secret.

    Raises:
        errors.BadKey: it is no such place, or what is there is no key.
    """
    scheme, _, place = source.partition(":")
    if scheme == "file" and place.startswith("/"):
        return load(Path(place))
    secrets = place.split(",")
    if scheme == "barbican" and all(map(ids.is_valid, secrets)):
        return _distinct(
            (master for id in secrets for master in _secret(fetch(id), f"secret {id}")), source
        )
    raise errors.BadKey(source=repr(source), reason="use file:/PATH or barbican:SECRET_ID.")


def load(path: Path | None) -> Masters:
    """The master keys in the file `path`; None: the public one.

    Raises:
        errors.BadKey: the file can't be read, holds no key, or others may read it.
    """
    if path is None:
        return (derive.PUBLIC_MASTER,)
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = file.read(_LARGEST_FILE)
    except OSError as error:
        raise errors.BadKey(source=path, reason=f"{error.strerror}.") from error
    if mode & 0o077:
        raise errors.BadKey(source=path, reason=f"others may read it (mode {mode:o}): chmod 600.")
    return parse(text.splitlines(), str(path))


def parse(lines: Iterable[str], source: str) -> Masters:
    """The master keys in `lines`, 64 hexadecimal digits each; `source` is named in the error.

    Raises:
        errors.BadKey: there are none, one of them is something else, or two are the same.
    """
    return _distinct((_key(line, source) for line in lines if line.strip()), source)


def of_task(lines: str | None) -> Masters:
    """The master keys that a task of the engine gives, as a file has them; None: the public one."""
    return (derive.PUBLIC_MASTER,) if lines is None else parse(lines.splitlines(), "the task")


def text(master_keys: Iterable[bytes]) -> str:
    """What a key file with these keys holds."""
    return "".join(f"{master.hex()}\n" for master in master_keys)


def keyring(
    master_keys: Masters, repository: str, writes: derive.Cipher = derive.Cipher.AES_256_GCM
) -> tuple[derive.Keys, ...]:
    """The keys of `repository` under each of the master keys, the one that writes first."""
    return tuple(derive.derive(master, repository, writes) for master in master_keys)


def _secret(payload: bytes, source: str) -> Masters:
    if len(payload) == derive.KEY_SIZE:
        return (payload,)
    return parse(payload.decode("ascii", errors="replace").splitlines(), source)


def _key(line: str, source: str) -> bytes:
    try:
        master = bytes.fromhex(line.strip())
    except ValueError:
        master = b""
    if len(master) != derive.KEY_SIZE:
        raise errors.BadKey(source=source, reason="it must be 64 hexadecimal digits, a key a line.")
    return master


def _distinct(found: Iterable[bytes], source: str) -> Masters:
    master_keys = tuple(found)
    if not master_keys:
        raise errors.BadKey(source=source, reason="there is none: a key is 64 hexadecimal digits.")
    if len(set(master_keys)) < len(master_keys):
        raise errors.BadKey(source=source, reason="the same key is there twice.")
    return master_keys
