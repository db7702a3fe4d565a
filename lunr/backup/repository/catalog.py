"""The backups in all repositories of a store, as their roots describe them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lunr.backup import errors
from lunr.backup.format.names import root_name
from lunr.backup.format.roots import Root, key_id
from lunr.backup.keys.derive import PUBLIC_MASTER
from lunr.backup.keys.master_keys import MasterKeys
from lunr.backup.open import open_repository
from lunr.backup.repository import sessions
from lunr.backup.stores import repositories
from lunr.common.errors import LunrError


def backups(
    url: str, options: Mapping[str, Any], keys: MasterKeys, only: str | None = None
) -> Iterator[tuple[str, str, Root | LunrError]]:
    """Repository, id and root of every backup in the store; or the error of reading the root.

    `only` limits them to one repository.

    Raises:
        errors.StoreUnavailable, errors.StoreRefused: the store can't be read.
    """
    for name in repositories(url, options):
        if only not in (None, name):
            continue
        with open_repository(url, name, keys, options) as repository:
            for backup_id in sorted(repository.backup_ids()):
                try:
                    yield name, backup_id, repository.load_root(backup_id)
                except errors.BackupMissing:  # deleted meanwhile
                    continue
                except (errors.CorruptObject, errors.UnsupportedFormat, errors.WrongKey) as error:
                    yield name, backup_id, error


def key_ids(
    url: str, options: Mapping[str, Any], known: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, str]]:
    """The repository of every backup in the store, and the id of the keys that it needs.

    Args:
        url: the store's.
        options: the store's.
        known: backups that must exist, by repository, even if the store does not list them.

    Raises:
        errors.RootMissing: the root of one of `known` is missing.
        errors.CorruptObject: a root does not name its key.
        errors.StoreUnavailable, errors.StoreRefused: the store can't be read.
    """
    for name in sorted({*repositories(url, options), *known}):
        required = frozenset(known.get(name, ()))
        with open_repository(url, name, (PUBLIC_MASTER,), options) as repository:
            for backup_id in sorted({*repository.backup_ids(), *required}):
                root = root_name(backup_id)
                try:
                    yield name, key_id(bytes(repository.store.get(root)), root)
                except errors.ObjectMissing:
                    if backup_id in required:
                        raise errors.RootMissing(id=backup_id) from None


def running_saves(url: str, options: Mapping[str, Any]) -> list[str]:
    """The ids of the backups that are being saved in any repository."""
    saves = []
    for name in repositories(url, options):
        with open_repository(url, name, (PUBLIC_MASTER,), options) as repository:
            now, settle_seconds = repository.clock(), repository.store.settle
            saves += [
                session.backup_id
                for _, session in sessions.load_all(repository)
                if session.over(now, settle_seconds) is None
            ]
    return saves
