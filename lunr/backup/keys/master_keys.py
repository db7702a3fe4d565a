"""Master keys: where they are kept. The first of several writes, the others are only for reading.

A backup's root names the key that it needs. Each key gives objects other names: the first
backup of a volume after a change of the key is full, and backups of different keys share
nothing.

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

#: The master keys of a node. The first is the one that writes.
MasterKeys = tuple[bytes, ...]

#: Fetches the bytes of a secret by its id.
Fetch = Callable[[str], bytes]

_LARGEST_FILE = 1 << 16


def open_master_keys(source: str, fetch: Fetch) -> MasterKeys:
    """The master keys at `source`: ``file:/PATH``, or ``barbican:ID`` or ``barbican:ID,ID``.

    Args:
        source: where they are.
        fetch: fetches a secret from Barbican.

    Raises:
        errors.BadKey: `source` has another form, or holds no key.
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


def load(path: Path | None) -> MasterKeys:
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


def parse(lines: Iterable[str], source: str) -> MasterKeys:
    """The master keys in `lines`, 64 hexadecimal digits each; errors name `source`.

    Raises:
        errors.BadKey: there are none, a line has another form, or two are the same.
    """
    return _distinct((_key(line, source) for line in lines if line.strip()), source)


def of_task(lines: str | None) -> MasterKeys:
    """The master keys in a task of the engine, as lines of a key file; None: the public one."""
    return (derive.PUBLIC_MASTER,) if lines is None else parse(lines.splitlines(), "the task")


def text(master_keys: Iterable[bytes]) -> str:
    """The content of a key file with these keys."""
    return "".join(f"{master.hex()}\n" for master in master_keys)


def keyring(
    master_keys: MasterKeys, repository: str, writes: derive.Cipher = derive.Cipher.AES_256_GCM
) -> tuple[derive.Keys, ...]:
    """The keys of `repository` under each of the master keys; the first are those that write."""
    return tuple(derive.derive(master, repository, writes) for master in master_keys)


def _secret(payload: bytes, source: str) -> MasterKeys:
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


def _distinct(keys: Iterable[bytes], source: str) -> MasterKeys:
    master_keys = tuple(keys)
    if not master_keys:
        raise errors.BadKey(source=source, reason="there is none: a key is 64 hexadecimal digits.")
    if len(set(master_keys)) < len(master_keys):
        raise errors.BadKey(source=source, reason="the same key is there twice.")
    return master_keys
