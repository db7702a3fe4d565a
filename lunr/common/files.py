"""Durable writes of files, and files with secrets."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lunr.common import concurrency, errors


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of `path`, as of open(2), while the context lasts. A new file has mode 0600."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def fsync(path: Path) -> None:
    """Make the writes to a file, or the names in a folder, survive a power cut.

    Raises:
        OSError: the sync failed.
    """
    with opened(path) as file:
        concurrency.blocking(os.fsync, file)


def write(path: Path, text: str) -> None:
    """Write `text` to the file `path`, mode 0600, durably: all of it or nothing.

    Raises:
        OSError: it can't be written.
    """
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def read(name: str, option: str) -> str:
    """The line in the file `name`, which only its owner may read.

    Raises:
        errors.ConfigError: it can't be read, or others may read it; the message names `option`.
    """
    if not name:
        raise errors.ConfigError(reason=f"{option} is not set")
    path = Path(name)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(reason=f"{option} {path}: {error}") from error
    if mode & 0o077:
        raise errors.ConfigError(
            reason=f"{option} {path}: others may read it (mode {mode:o}); chmod 0600 it"
        )
    if not text:
        raise errors.ConfigError(reason=f"{option} {path} is empty")
    return text
