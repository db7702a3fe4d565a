"""Stores, where objects live, by URL."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lunr.backup import errors
from lunr.backup.stores.base import Retrying, Store
from lunr.backup.stores.files import FileStore, folders
from lunr.backup.stores.limited import Limited
from lunr.common import ids, openstack
from lunr.common.rate import TokenBucket

#: Options that only a login to Keystone needs.
KEYSTONE_OPTIONS = (
    *("auth_type", "application_credential_id", "interface", "region_name"),
    *("project_id", "project_name", "project_domain_id", "project_domain_name"),
    *("user_domain_id", "user_domain_name"),
)
#: Seconds whose unused bytes may be used later: a slow request must not delay the next ones.
_BURST = 1.0

__all__ = ["Store", "open_store", "repositories", "scheme"]


def open_store(
    url: str,
    repository: str,
    options: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    limit: int = 0,
) -> Store:
    """Open one repository's objects in the store at `url`, with retries.

    Args:
        url: ``files:/PATH`` or ``swift:PREFIX``.
        repository: an id: the account's folder, or the tail of its container.
        options: for Swift, those of the configuration's group ``[swift]``, with
            ``key`` for the password; None reads ``ST_*`` and ``OS_*`` from the environment.
        cancel: ends the pauses between retries, and those for the limit.
        limit: bytes a second, sent and received; 0: no limit.

    Raises:
        errors.BadStoreURL, errors.StoreUnavailable, errors.StoreRefused.
    """
    ids.check(repository, "repository")
    place = url.partition(":")[2]
    if scheme(url) == "files":
        files = _limited(FileStore(Path(place) / repository), limit, cancel)
        return Retrying(files, retries=2, cancel=cancel)
    # Imported here: swiftclient takes longer to import than all other modules.
    from lunr.backup.stores.swift import SwiftStore

    options = openstack.swift_options(os.environ) if options is None else options
    store = SwiftStore(f"{place}-{repository}", connection_options(options))
    retries = int(options.get("retries", 5))
    return Retrying(_limited(store, limit, cancel), retries=retries, cancel=cancel)


def _limited(store: Store, limit: int, cancel: threading.Event | None) -> Store:
    if not limit:
        return store
    return Limited(store, TokenBucket(limit, _BURST), (cancel or threading.Event()).wait)


def repositories(url: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """The repositories in the store at `url`, in order; `options` as for :func:`open_store`.

    Raises:
        errors.BadStoreURL, errors.StoreUnavailable, errors.StoreRefused.
    """
    place = url.partition(":")[2]
    if scheme(url) == "files":
        names = folders(Path(place))
    else:
        from lunr.backup.stores.swift import SwiftStore

        options = openstack.swift_options(os.environ) if options is None else options
        prefix = f"{place}-"
        with contextlib.closing(SwiftStore(prefix, connection_options(options))) as store:
            names = [name.removeprefix(prefix) for name in store.containers(prefix)]
    return sorted(name for name in names if ids.is_valid(name))


def scheme(url: str) -> str:
    """``files`` or ``swift``.

    Raises:
        errors.BadStoreURL: `url` has another form.
    """
    kind, _, place = url.partition(":")
    if (kind == "files" and place.startswith("/")) or (
        kind == "swift" and place and "/" not in place
    ):
        return kind
    raise errors.BadStoreURL(url=url)


def connection_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a SwiftStore for those of :func:`open_store`."""
    if not options.get("auth_url"):
        raise errors.StoreRefused(
            store="swift", reason="no authentication URL is given (ST_AUTH or OS_AUTH_URL)."
        )
    return {
        "authurl": options["auth_url"],
        "auth_version": str(options.get("auth_version") or "1"),
        "user": options.get("user"),
        "key": options.get("key"),
        "os_options": {name: options[name] for name in KEYSTONE_OPTIONS if options.get(name)},
        "cacert": options.get("cacert") or None,
        "timeout": float(options.get("timeout", 60)),
    }
