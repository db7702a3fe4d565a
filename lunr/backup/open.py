"""A repository, opened: its store, and its keys under each master key."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from lunr.backup.keys import derive
from lunr.backup.keys.master_keys import MasterKeys, keyring
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store


@contextlib.contextmanager
def open_repository(
    url: str,
    name: str,
    master_keys: MasterKeys,
    options: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    limit: int = 0,
    cipher: derive.Cipher = derive.Cipher.AES_256_GCM,
) -> Iterator[Repository]:
    """Open the repository `name` and its store (:func:`open_store`); close the store at the end.

    The first of the `master_keys` writes, with `cipher`.
    """
    own, *older = keyring(master_keys, name, cipher)
    with contextlib.closing(open_store(url, name, options, cancel, limit)) as store:
        yield Repository(store, own, older=older)
