"""The store and the master keys that the configuration names."""

from __future__ import annotations

from typing import Any

from lunr.backup import errors, stores
from lunr.backup.keys import master_keys
from lunr.backup.keys.master_keys import Masters
from lunr.common import files
from lunr.common.config import ConfigOpts
from lunr.common.errors import ConfigError


def store_options(conf: ConfigOpts) -> dict[str, Any]:
    """What is needed besides ``[store] url`` to reach the store (:func:`stores.open_store`).

    Raises:
        ConfigError, errors.BadStoreURL: something is missing or wrong.
    """
    scheme = stores.scheme(conf.store.url)
    if scheme == "files":
        return {}
    if not conf.swift.auth_url:
        raise ConfigError(reason="[swift] auth_url is not set")
    options = {name: conf.swift[name] for name in conf.swift if name != "key_file"}
    return {**options, "key": files.read(conf.swift.key_file, "[swift] key_file")}


def open_master_keys(conf: ConfigOpts) -> Masters:
    """The master keys at ``[store] key``. Barbican is asked once; nothing is written or logged.

    Raises:
        errors.BadKey: there is none that can be used.
        errors.KeyManagerUnavailable: Barbican does not answer.
    """

    def fetch(secret_id: str) -> bytes:
        try:
            from lunr.backup.keys.barbican import Barbican
        except ImportError as error:
            raise errors.BadKey(
                source=conf.store.key, reason=f"{error}: install lunr's extra `barbican`."
            ) from error
        return Barbican(conf).fetch(secret_id)

    return master_keys.open_master_keys(conf.store.key, fetch)
