"""Where objects live, by URL."""

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
from lunr.backup.stores.limited import Limited, Pace
from lunr.common import ids

__all__ = ["Store", "open_store", "repositories", "scheme"]


def open_store(
    url: str,
    repository: str,
    options: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    limit: int = 0,
) -> Store:
    """The objects of one repository in the store at `url`, with retries.

    Args:
        url: ``files:/PATH`` or ``swift:PREFIX``.
        repository: an id: the account's folder, or the tail of its container.
        options: for Swift, those of the configuration's group ``[swift]``, with
            ``key`` for the password; None reads ``ST_*`` and ``OS_*`` from the environment.
        cancel: ends the pauses between retries, and those for the limit.
        limit: bytes a second that go there and come back; 0: as many as can.

    Raises:
        errors.BadStoreURL, errors.StoreUnavailable, errors.StoreRefused.
    """
    ids.check(repository, "repository")
    place = url.partition(":")[2]
    if scheme(url) == "files":
        files = _limited(FileStore(Path(place) / repository), limit, cancel)
        return Retrying(files, retries=2, cancel=cancel)
    # Here and not above: swiftclient takes longer to import than all the rest.
    from lunr.backup.stores.swift import SwiftStore

    options = _environment() if options is None else options
    store = SwiftStore(f"{place}-{repository}", connection_options(options))
    retries = int(options.get("retries", 5))
    return Retrying(_limited(store, limit, cancel), retries=retries, cancel=cancel)


def _limited(store: Store, limit: int, cancel: threading.Event | None) -> Store:
    return Limited(store, Pace(limit, cancel)) if limit else store


def repositories(url: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """The repositories in the store at `url`, in order; `options` as for :func:`open_store`.

    Raises:
        errors.BadStoreURL, errors.StoreUnavailable, errors.StoreRefused.
    """
    place = url.partition(":")[2]
    if scheme(url) == "files":
        found = folders(Path(place))
    else:
        from lunr.backup.stores.swift import SwiftStore

        options = _environment() if options is None else options
        prefix = f"{place}-"
        with contextlib.closing(SwiftStore(prefix, connection_options(options))) as store:
            found = [name.removeprefix(prefix) for name in store.containers(prefix)]
    return sorted(name for name in found if ids.is_valid(name))


def scheme(url: str) -> str:
    """``files`` or ``swift``.

    Raises:
        errors.BadStoreURL: `url` is no store's.
    """
    kind, _, place = url.partition(":")
    if (kind == "files" and place.startswith("/")) or (
        kind == "swift" and place and "/" not in place
    ):
        return kind
    raise errors.BadStoreURL(url=url)


def _environment() -> dict[str, Any]:
    """The options of group ``[swift]``, from the variables that the `swift` command reads."""
    env = os.environ
    if env.get("OS_AUTH_URL"):
        return {
            "auth_url": env["OS_AUTH_URL"],
            "auth_version": env.get("OS_IDENTITY_API_VERSION", "3"),
            "user": env.get("OS_USERNAME", ""),
            "key": env.get("OS_PASSWORD", ""),
            "project_name": env.get("OS_PROJECT_NAME", ""),
            "user_domain_name": env.get("OS_USER_DOMAIN_NAME", "Default"),
            "project_domain_name": env.get("OS_PROJECT_DOMAIN_NAME", "Default"),
            "region_name": env.get("OS_REGION_NAME", ""),
            "cacert": env.get("OS_CACERT", ""),
        }
    return {
        "auth_url": env.get("ST_AUTH", ""),
        "auth_version": env.get("ST_AUTH_VERSION", "1"),
        "user": env.get("ST_USER", ""),
        "key": env.get("ST_KEY", ""),
    }


def connection_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a SwiftStore is given for `options` as :func:`open_store` takes them."""
    if not options.get("auth_url"):
        raise errors.StoreRefused(
            store="swift", reason="no authentication URL is given (ST_AUTH or OS_AUTH_URL)."
        )
    wanted = ("project_name", "user_domain_name", "project_domain_name", "region_name")
    return {
        "authurl": options["auth_url"],
        "auth_version": str(options.get("auth_version") or "1"),
        "user": options.get("user"),
        "key": options.get("key"),
        "os_options": {name: options[name] for name in wanted if options.get(name)},
        "cacert": options.get("cacert") or None,
        "timeout": float(options.get("timeout", 60)),
    }
