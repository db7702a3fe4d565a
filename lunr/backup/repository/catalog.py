"""What the roots in a store tell of its backups, in all its repositories."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lunr.backup import errors
from lunr.backup.format.names import root_name
from lunr.backup.format.roots import Root, key_id
from lunr.backup.keys.derive import PUBLIC_MASTER
from lunr.backup.keys.master_keys import Masters
from lunr.backup.open import open_repository
from lunr.backup.repository import sessions
from lunr.backup.stores import repositories
from lunr.common.errors import LunrError


def backups(
    url: str, options: Mapping[str, Any], found: Masters, only: str | None = None
) -> Iterator[tuple[str, str, Root | LunrError]]:
    """Repository, id and root of every backup in the store; or why the root can't be read.

    Of the repository `only`, if that is given.

    Raises:
        errors.StoreUnavailable, errors.StoreRefused: the store can't be asked.
    """
    for name in repositories(url, options):
        if only not in (None, name):
            continue
        with open_repository(url, name, found, options) as repository:
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
    """For every backup in the store its repository, and the id of the keys that it needs.

    Args:
        url: the store's.
        options: the store's.
        known: backups that must be there, by repository, whether or not they are listed.

    Raises:
        errors.RootMissing: one of `known` is not there.
        errors.CorruptObject: a root does not tell its key.
        errors.StoreUnavailable, errors.StoreRefused: the store can't be asked.
    """
    for name in sorted({*repositories(url, options), *known}):
        must = frozenset(known.get(name, ()))
        with open_repository(url, name, (PUBLIC_MASTER,), options) as repository:
            for backup_id in sorted({*repository.backup_ids(), *must}):
                root = root_name(backup_id)
                try:
                    yield name, key_id(bytes(repository.store.get(root)), root)
                except errors.ObjectMissing:
                    if backup_id in must:
                        raise errors.RootMissing(id=backup_id) from None


def running(url: str, options: Mapping[str, Any]) -> list[str]:
    """The ids of the backups that are being saved in any repository."""
    saves = []
    for name in repositories(url, options):
        with open_repository(url, name, (PUBLIC_MASTER,), options) as repository:
            now, settle = repository.clock(), repository.store.settle
            saves += [
                session.backup_id
                for _, session in sessions.load_all(repository)
                if session.over(now, settle) is None
            ]
    return saves
