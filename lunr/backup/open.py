"""A repository, opened: its store, and its keys under each master key."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from lunr.backup.keys import derive
from lunr.backup.keys.master_keys import Masters, keyring
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store


@contextlib.contextmanager
def open_repository(
    url: str,
    name: str,
    master_keys: Masters,
    options: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    limit: int = 0,
    cipher: derive.Cipher = derive.Cipher.AES_256_GCM,
) -> Iterator[Repository]:
    """The repository `name`, whose store :func:`open_store` opens; it is closed in the end.

    The first of the `master_keys` writes, with `cipher`.
    """
    own, *older = keyring(master_keys, name, cipher)
    with contextlib.closing(open_store(url, name, options, cancel, limit)) as store:
        yield Repository(store, own, older=older)
