"""The store and the master keys that the configuration names."""

from __future__ import annotations

from typing import Any

from lunr.backup import errors, stores
from lunr.backup.keys import master_keys
from lunr.backup.keys.master_keys import MasterKeys
from lunr.common import files
from lunr.common.config import ConfigOpts
from lunr.common.errors import ConfigError


def store_options(conf: ConfigOpts) -> dict[str, Any]:
    """The options besides ``[store] url`` that :func:`stores.open_store` needs.

    Raises:
        ConfigError, errors.BadStoreURL: an option is missing or wrong.
    """
    scheme = stores.scheme(conf.store.url)
    if scheme == "files":
        return {}
    if not conf.swift.auth_url:
        raise ConfigError(reason="[swift] auth_url is not set")
    options = {name: conf.swift[name] for name in conf.swift if name != "key_file"}
    return {**options, "key": files.read(conf.swift.key_file, "[swift] key_file")}


def open_master_keys(conf: ConfigOpts) -> MasterKeys:
    """The master keys at ``[store] key``. Barbican is asked once; the keys are never logged.

    Raises:
        errors.BadKey: no key there can be used.
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
